"""Pictures as cameras, scanners and tools leave them: the right picture or one line, the same for everything."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.data_sets import mask_of, write_image, write_labels, write_text, write_voc
from wilson.data.check import check
from wilson.data.images import header, read_image, read_mask, rgb
from wilson.data.scan import fault
from wilson.data.sources.labelled import open_labelled
from wilson.data.sources.saliency import Saliency
from wilson.data.sources.voc import VOCFolder
from wilson.errors import UserError

CORNERS = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[250, 250, 0], [0, 250, 250], [250, 0, 250]]], np.uint8)
SCENE = CORNERS.repeat(8, 0).repeat(8, 1)  # 16 rows of 24 pixels


def oriented(value: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def close(picture: Image.Image, expected: np.ndarray) -> bool:
    """Whether a picture is the expected one but for what lossy formats change."""
    return picture.mode == "RGB" and float(np.abs(np.asarray(picture).astype(int) - expected).mean()) < 15


BROKEN_EXIF = {
    "no TIFF header": b"Exif\x00\x00\x00\x08\x00\x02\x01\x12\x00\x03",
    "empty": b"Exif\x00\x00",
    "offset beyond the end": b"Exif\x00\x00II*\x00\xff\xff\xff\x7f",
    "count of entries beyond the end": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12",
    "text as orientation": b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + struct.pack("<HHHII", 1, 0x0112, 2, 4, 0x00353637),
}


@pytest.mark.parametrize("block", BROKEN_EXIF.values(), ids=BROKEN_EXIF)
@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_a_malformed_exif_block_leaves_the_picture_as_stored(tmp_path: Path, block: bytes, extension: str) -> None:
    file = tmp_path / f"a.{extension}"
    Image.fromarray(SCENE).save(file, exif=block, quality=95)
    assert close(read_image(file), SCENE)
    assert header(file) == ((24, 16), 1)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(tmp_path: Path, value: int) -> None:
    Image.fromarray(SCENE).save(tmp_path / "a.jpg", exif=oriented(value), quality=95)
    assert close(read_image(tmp_path / "a.jpg"), SCENE)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_turned_once_and_masks_with_it(tmp_path: Path, extension: str, value: int) -> None:
    turns: dict[int, Any] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }
    ids = mask_of(1, 2, 3, 4, size=SCENE.shape[:2])
    ids[0, 0] = 9
    image, mask = tmp_path / f"a.{extension}", tmp_path / "mask.png"
    Image.fromarray(SCENE).save(image, exif=oriented(value), quality=95)
    write_image(mask, ids)
    upright = turns[value](SCENE)
    assert close(read_image(image), upright)
    assert header(image).upright == upright.shape[1::-1] and header(image).size == (24, 16)
    np.testing.assert_array_equal(read_mask(mask, image), turns[value](ids))
    np.testing.assert_array_equal(read_mask(mask), ids)
    if value > 4:  # a mask of the upright size was drawn on the upright image
        write_image(mask, turns[value](ids))
        np.testing.assert_array_equal(read_mask(mask, image), turns[value](ids))


def unusual(folder: Path) -> dict[Path, np.ndarray]:
    """Files of unusual kinds, and what a viewer shows of them."""
    picture = Image.fromarray(SCENE)
    see_through = picture.convert("RGBA")
    see_through.putalpha(Image.fromarray(np.where(np.arange(24) < 8, 0, 255).astype(np.uint8)[None].repeat(16, 0)))
    on_white = SCENE.copy()
    on_white[:, :8] = 255
    indexed = Image.fromarray((np.arange(16 * 24).reshape(16, 24) % 3).astype(np.uint8))
    indexed.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 200])
    table = np.array([[255, 255, 255], [200, 0, 0], [0, 0, 200]], np.uint8)
    deep = (np.arange(16 * 24, dtype=np.uint16).reshape(16, 24) * 170).astype(np.uint16)
    grey = (deep // 257).astype(np.uint8)[..., None].repeat(3, 2)
    other = Image.fromarray(np.zeros_like(SCENE))
    kinds: dict[str, Any] = {
        "cmyk.jpg": (picture.convert("CMYK"), {"quality": 95}, SCENE),
        "cmyk.tif": (picture.convert("CMYK"), {}, SCENE),
        "alpha.png": (see_through, {}, on_white),
        "alpha.webp": (see_through, {"lossless": True}, on_white),
        "grey-alpha.png": (see_through.convert("LA"), {}, None),
        "indexed.png": (indexed, {"transparency": 0}, table[np.asarray(indexed)]),
        "indexed-bytes.png": (indexed, {"transparency": b"\x00\xff\xff"}, table[np.asarray(indexed)]),
        "indexed.gif": (indexed, {"transparency": 0}, table[np.asarray(indexed)]),
        "moving.gif": (picture, {"save_all": True, "append_images": [other]}, None),
        "moving.webp": (picture, {"save_all": True, "append_images": [other], "lossless": True}, SCENE),
        "moving.png": (picture, {"save_all": True, "append_images": [other]}, SCENE),
        "pages.tiff": (picture, {"save_all": True, "append_images": [other]}, SCENE),
        "two.jpg": (picture, {"format": "MPO", "save_all": True, "append_images": [other], "quality": 95}, SCENE),
        "deep.png": (Image.fromarray(deep), {}, grey),
        "deep.tif": (Image.fromarray(deep), {}, grey),
        "deep.pgm": (Image.fromarray(deep), {}, grey),
        "bits.png": (Image.fromarray(SCENE[..., 0] > 0), {}, None),
        "cut-profile.jpg": (picture, {"icc_profile": b"\x00\x00\x02\x0cabcd", "quality": 95}, SCENE),
        "cut-profile.png": (picture, {"icc_profile": b"\x00"}, SCENE),
        "plain.bmp": (picture, {}, SCENE),
        "photo.jfif": (picture, {"quality": 95}, SCENE),
    }  # fmt: skip
    for name, (image, options, _) in kinds.items():
        image.save(folder / name, **({"format": "JPEG"} if name.endswith(".jfif") else {}), **options)
    return {folder / name: expected for name, (_, _, expected) in kinds.items() if expected is not None}


def test_unusual_kinds_are_read_as_a_viewer_shows_them(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    files = unusual(tmp_path)
    assert [file.name for file, expected in files.items() if not close(read_image(file), expected)] == []
    assert {read_image(file).size for file in tmp_path.iterdir()} == {(24, 16)}
    assert not list(recwarn)


def test_damage_raises_nothing_but_a_users_error(tmp_path: Path) -> None:
    unusual(tmp_path)
    rng = np.random.default_rng(0)
    for file in sorted(tmp_path.iterdir()):
        whole = file.read_bytes()
        damaged = [whole[:cut] for cut in (0, 3, 20, len(whole) // 2)]
        for _ in range(6):
            changed = bytearray(whole)
            for place in rng.integers(0, len(whole), 8):
                changed[place] = rng.integers(0, 256)
            damaged.append(bytes(changed))
        for content in damaged:
            file.write_bytes(content)
            for look in (read_image, read_mask, header):
                with suppress(UserError):  # or the right picture
                    look(file)


def test_what_is_no_picture_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<svg/>")
    with pytest.raises(UserError, match=r"a.jpg: cannot be read: no image of a known format \(JPEG, PNG, "):
        read_image(tmp_path / "a.jpg")
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(UserError, match="no image of a known format"):
        read_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"none.png: cannot be read: No such file"):
        read_image(tmp_path / "none.png")
    for wrong in (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int32)):
        Image.fromarray(wrong).save(tmp_path / "a.tif")
        with pytest.raises(UserError, match=r"a.tif: expected values of 8 or 16 bits, got mode (F|I)"):
            read_image(tmp_path / "a.tif")


def test_an_image_beyond_the_limit_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(SCENE).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for look in (read_image, header, read_mask):
        with pytest.raises(UserError, match=r"a.png: cannot be read: Image size \(384 pixels\) exceeds limit of 200"):
            look(tmp_path / "a.png")


def test_a_picture_in_memory_is_guarded_too(tmp_path: Path) -> None:
    Image.fromarray(SCENE).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-40])
    with pytest.raises(UserError, match="image: cannot be read"):
        rgb(Image.open(tmp_path / "a.jpg"))


def test_masks_of_one_bit_say_what_to_store(tmp_path: Path) -> None:
    Image.fromarray(mask_of(0, 1) > 0).save(tmp_path / "m.png")
    with pytest.raises(UserError, match=r"m.png: is a mask of one bit; store it with 8 bits, 0 for background and 1"):
        read_mask(tmp_path / "m.png")


def test_one_file_is_upright_whichever_list_names_it(tmp_path: Path) -> None:
    root = write_voc(tmp_path, {"phone": mask_of(0, 1, size=(16, 24))}, with_masks=False)
    write_labels(root, ["phone 1"])
    write_text(tmp_path / "labels.txt", ["phone 1"])
    for value, size in ((6, (16, 24)), (3, (24, 16))):
        Image.fromarray(SCENE).save(root / "JPEGImages" / "phone.jpg", exif=oriented(value), quality=95)
        voc = VOCFolder(root).image(0)
        labelled = open_labelled(tmp_path / "labels.txt", ("background", "ant"), [root / "JPEGImages"]).image(0)
        assert voc.size == size and voc.tobytes() == labelled.tobytes()
        assert close(voc, np.rot90(SCENE, -1 if value == 6 else 2))


def test_a_mask_lies_under_its_image_after_turning(tmp_path: Path) -> None:
    ids = mask_of(0, 1, size=(16, 24))
    root = write_voc(tmp_path, {"a": ids})
    for value in (3, 6):
        Image.fromarray(SCENE).save(root / "JPEGImages" / "a.jpg", exif=oriented(value))
        source = VOCFolder(root)
        np.testing.assert_array_equal(source.mask(0), np.rot90(ids, -1 if value == 6 else 2))
        assert fault(source, 0) == ""
        write_image(tmp_path / "maps" / "a.png", ids * 200)
        shown = Saliency(tmp_path / "maps", ["a"]).read("a", source.image(0).size, source.files(0)[0])
        np.testing.assert_array_equal(shown, np.asarray(source.mask(0)) * 200)


@pytest.mark.parametrize(("value", "size", "doubtful"), [
    (6, (12, 12), True), (3, (8, 12), True), (2, (8, 12), True), (6, (8, 12), False), (1, (12, 12), False)
])  # fmt: skip
def test_check_warns_where_a_mask_fits_either_way(
    tmp_path: Path, value: int, size: tuple[int, int], doubtful: bool
) -> None:
    root = write_voc(tmp_path, {"a": mask_of(0, 1, 2, 3, 4, 5, size=size)})
    Image.new("RGB", size[::-1]).save(root / "JPEGImages" / "a.jpg", exif=oriented(value))
    report = check(root)
    assert report.errors == ()
    assert [warning.file for warning in report.warnings] == (["JPEGImages/a.jpg"] if doubtful else [])
    assert all("EXIF data turns this image" in warning.text for warning in report.warnings)

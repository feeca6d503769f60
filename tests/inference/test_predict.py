"""Segmenting images: files, folders and patterns, batches, broken images, and the Python API."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import wilson
from tests.support.tiny_runs import CPU, one_line, save_tiny
from wilson.cli import main
from wilson.data.images import read_image
from wilson.errors import UserError
from wilson.inference import predict as module
from wilson.inference.predict import Predictor, check_images, find_images, predict, result_names
from wilson.pictures.palette import distinct


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "checkpoint.pt")


@pytest.fixture
def photos(tmp_path):
    """Five images of two sizes, two of them one folder below."""
    folder, numbers = tmp_path / "photos", np.random.default_rng(0)
    (folder / "below").mkdir(parents=True)
    for name, size in (("a.jpg", (40, 56)), ("b.png", (48, 40)), ("c.jpg", (40, 56)), ("below/d.jpg", (40, 56))):
        pixels = numbers.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_folders_and_patterns_stand_for_their_images_once(photos):
    def found(*patterns):
        return [str(path.relative_to(photos)) for path in find_images([photos / p if p else photos for p in patterns])]

    assert found("") == ["a.jpg", "b.png", "c.jpg"]
    assert found("*.jpg", "") == ["a.jpg", "c.jpg", "b.png"]
    assert found("**/*.jpg") == ["a.jpg", "below/d.jpg", "c.jpg"]
    for nothing in ("*.gif", "nowhere/*"):
        with pytest.raises(UserError, match=r"expected a pattern that images .* fit, found none"):
            found(nothing)
    (photos / "empty").mkdir()
    with pytest.raises(UserError, match="expected a folder with images"):
        found("empty")
    (photos / "odd[1].jpg").touch()
    assert found("odd[1].jpg") == ["odd[1].jpg"]


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_batches_do_not_change_the_masks(model, photos, tmp_path, batch):
    written = predict([photos, photos / "below"], model, tmp_path / "out", CPU, batch=batch)
    assert [path.name for path in written] == ["a.png", "b.png", "c.png", "d.png"]
    predictor, seen = wilson.load(model, "cpu"), set()
    for name, path in zip(("a.jpg", "b.png", "c.jpg", "below/d.jpg"), written, strict=True):
        mask = np.asarray(Image.open(path))
        assert np.array_equal(mask, predictor.predict(photos / name))
        coloured, photo = Image.open(path.with_name(f"{path.stem}_overlay.jpg")), Image.open(photos / name)
        assert coloured.width >= photo.width and coloured.height >= photo.height + 22 * bool(mask.any()), "a legend"
        seen |= set(np.unique(mask))
    assert seen <= {0, 1, 2, 4} and 4 in seen


def test_masks_and_overlays_have_the_colours_of_the_report(model, photos, tmp_path):
    (written,) = predict([photos / "a.jpg"], model, tmp_path / "out", CPU)
    mask = Image.open(written)
    ids, colours = np.asarray(mask), np.asarray(mask.convert("RGB"))
    for channel, class_id in enumerate((0, 1, 2, 4)):  # whose mask ids are not its channels
        assert (colours[ids == class_id] == distinct(4)[channel]).all()
    coloured, photo = Image.open(tmp_path / "out" / "a_overlay.jpg"), np.asarray(read_image(photos / "a.jpg"), float)
    seen = np.asarray(coloured.convert("RGB"), float)[: photo.shape[0], : photo.shape[1]]
    mixed = np.where(ids[..., None] > 0, 0.45 * photo + 0.55 * colours, photo)
    assert np.median(np.abs(seen - mixed)) < 12, "but for JPEG and the borders"


def test_probabilities_are_written_on_request(model, photos, tmp_path):
    out = tmp_path / "out"
    command = ["predict", str(photos), "--checkpoint", str(model), "--out", str(out)]
    assert main([*command, "--probabilities"]) == 0
    for name in ("a", "b", "c"):
        found, mask = np.load(out / f"{name}_probabilities.npz"), np.asarray(Image.open(out / f"{name}.png"))
        values = found["probabilities"]
        assert values.dtype == np.float16 and values.shape == (4, *mask.shape)
        assert list(found["classes"]) == ["background", "ant", "bee", "dog"]
        assert np.abs(values.astype(float).sum(0) - 1).max() < 0.01
        assert (found["ids"][values.argmax(0)] == mask).mean() > 0.99, "but for ties in float16"
    assert main([*command[:-1], str(tmp_path / "plain")]) == 0
    assert not list((tmp_path / "plain").glob("*.npz"))


def test_an_image_that_breaks_off_is_named_and_the_others_are_written(model, photos, tmp_path, capsys):
    whole = (photos / "a.jpg").read_bytes()
    (photos / "a.jpg").write_bytes(whole[:-40])
    out = tmp_path / "out"
    assert main(["predict", str(photos), "--checkpoint", str(model), "--out", str(out)]) == 2
    line = one_line(capsys)
    assert "1 of 3 images were left out" in line and "a.jpg" in line
    assert {path.name for path in out.glob("*.png")} == {"b.png", "c.png"}


def test_nothing_is_written_for_a_mistake(model, photos, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="at least 1 image"):
        predict([photos], model, out, CPU, batch=0)
    with pytest.raises(UserError, match="cannot be read"):
        predict([photos / "notes.txt"], model, out, CPU)
    with pytest.raises(UserError, match="no such file"):
        predict([photos / "a.jpg"], photos / "none.pt", out, CPU)
    assert not out.exists()


def test_python_api(model, photos):
    predictor = wilson.load(str(model), device="cpu")
    assert isinstance(predictor, Predictor)
    assert predictor.classes == ("background", "ant", "bee", "dog") and list(predictor.ids) == [0, 1, 2, 4]
    image = Image.open(photos / "b.png")
    mask = predictor.predict(image)
    assert mask.shape == (40, 48) and mask.dtype == np.uint8
    for same in (photos / "b.png", str(photos / "b.png"), np.asarray(image), image.convert("RGBA")):
        assert np.array_equal(predictor.predict(same), mask)
    grey = np.asarray(image.convert("L"))
    assert np.array_equal(predictor.predict(grey), predictor.predict(np.stack([grey] * 3, 2)))
    for wrong in (np.zeros((3, 40, 48), np.uint8), np.zeros((40, 48, 3)), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(UserError, match="expected a uint8 array"):
            predictor.predict(wrong)


def test_import_stays_light():
    heavy = "{'torch', 'torchvision', 'numpy', 'PIL'} & set(sys.modules)"
    code = f"import sys, wilson; assert wilson.load.__doc__ and not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sources_are_not_overwritten(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="would overwrite the image"):
        predict([path], Path("never read"), tmp_path, CPU, overwrite=True)
    assert path.read_bytes() == before


def test_sixteen_bits_are_scaled_and_unknown_ranges_refused(tmp_path):
    grey = np.array([[0, 257, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert np.asarray(read_image(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 1, 255]
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match="got mode F"):
        read_image(tmp_path / "float.tif")


def test_photographs_stand_read_image(tmp_path):
    """EXIF's 6: the camera was turned by a quarter."""
    image = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert read_image(tmp_path / "photo.jpg").size == (4, 6)
    assert list(check_images([tmp_path / "photo.jpg"])[0]) == [(4, 6)]


def test_images_of_one_name_keep_their_folders(model, photos, tmp_path):
    Image.new("RGB", (40, 40)).save(photos / "below" / "a.png")
    Image.new("RGB", (40, 40)).save(photos / "b.jpg")
    written = predict([photos, photos / "below"], model, tmp_path / "out", CPU)
    names = ["a.png", "b.jpg.png", "b.png.png", "c.png", "below/a.png", "d.png"]
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == names
    assert all(path.is_file() for path in written)


@pytest.mark.parametrize(("files", "expected"), [
    (["mon/1.jpg", "tue/1.jpg", "tue/2.jpg"], ["mon/1", "tue/1", "2"]),
    (["1.jpg", "1.png"], ["1.jpg", "1.png"]),
    (["a/1.jpg", "a/1.png", "b/1.jpg"], ["a/1.jpg", "a/1.png", "b/1"]),
    (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg", "a.png", "a.jpg.png"]),
    (["b/a.jpg", "b/a.png", "c/a.jpg.png"], ["b/a.jpg", "b/a.png", "a.jpg"]),
])  # fmt: skip
def test_no_two_images_share_a_result(tmp_path, files, expected):
    found = result_names([tmp_path / file for file in files], tmp_path / "out")
    assert list(found.values()) == expected and len(set(expected)) == len(expected)


def test_side_files_and_broken_images_do_not_keep_the_others_from_being_segmented(model, photos, tmp_path, capsys):
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "__MACOSX/a.jpg", ".ipynb_checkpoints/a.jpg"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(b"\x00\x05\x16\x07")
    shell = [str(path) for path in sorted(photos.iterdir()) if path.is_file() and path.suffix != ".txt"]
    for number, arguments in enumerate(([str(photos)], [f"{photos}/**/[a-c].*"], shell)):
        out = tmp_path / str(number)
        assert main(["predict", *arguments, "--checkpoint", str(model), "--out", str(out)]) == 0
        assert {path.name for path in out.glob("*.png")} == {"a.png", "b.png", "c.png"}
    (photos / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main(["predict", str(photos), "--checkpoint", str(model), "--out", str(out)]) == 2
    assert "1 of 4 images were left out" in capsys.readouterr().err
    assert {path.name for path in out.glob("*.png")} == {"a.png", "b.png", "c.png"}
    hidden = photos / ".hidden"
    hidden.mkdir()
    (photos / "a.jpg").rename(hidden / "e.jpg")
    assert find_images([photos / ".hidden" / "*.jpg"]) == find_images([hidden]) == [hidden / "e.jpg"]
    with pytest.raises(UserError, match="expected an image, no side file"):
        find_images([photos / "._a.jpg"])


def test_turned_photographs_of_every_format_are_grouped_by_their_upright_size(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    for name in ("a.jpg", "b.tif", "c.png", "d.webp"):
        pixels.save(tmp_path / name, exif=exif)
    pixels.save(tmp_path / "e.jpg")
    assert {size: len(paths) for size, paths in check_images(find_images([tmp_path]))[0].items()} == {
        (40, 60): 4, (60, 40): 1,
    }  # fmt: skip
    assert {Image.open(path).size for path in predict([tmp_path], model, tmp_path / "out", CPU)} == {(40, 60), (60, 40)}


def test_parts_of_a_large_image_are_segmented_alike(model, photos, monkeypatch):
    predictor = wilson.load(model, "cpu")
    image = Image.open(photos / "a.jpg").resize((210, 330))
    whole = predictor.predict(image)
    for pixels in (210, 1000, 210 * 329):
        monkeypatch.setattr(module, "PART", pixels)
        assert (predictor.predict(image) != whole).mean() < 1e-4  # rounding between two equal classes


def test_batches_are_bounded_by_their_pixels(model, photos, tmp_path, monkeypatch):
    sizes = []
    segment = Predictor.predict_batch

    def noted(self, images):
        sizes.append(len(images))
        return segment(self, images)

    monkeypatch.setattr(Predictor, "predict_batch", noted)
    predict([photos], model, tmp_path / "one", CPU)
    monkeypatch.setattr(module, "BATCH", 40 * 56)
    predict([photos], model, tmp_path / "two", CPU)
    assert sizes == [2, 1, 1, 1, 1]


def test_overlays_of_huge_images_are_drawn_smaller(model, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_OVERLAY", 20)
    monkeypatch.setattr(module, "with_legend", lambda picture, entries: picture)
    (mask,) = predict([photos / "a.jpg"], model, tmp_path / "out", CPU)
    assert Image.open(mask).size == (40, 56)
    assert Image.open(tmp_path / "out" / "a_overlay.jpg").size == (14, 19)


def test_names_of_files_cannot_write_on_the_terminal(model, photos, tmp_path, capsys):
    odd = photos / "odd"
    odd.mkdir()
    for name in (b"new\nline.png", b"red\x1b[31m.png", b"latin\xe9.png", "\u202egnp.png".encode()):
        Path(os.fsdecode(os.fsencode(odd) + b"/" + name)).write_bytes((photos / "b.png").read_bytes())
    assert main(["predict", str(odd), "--checkpoint", str(model), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 4 and said.isascii() and "\x1b" not in said
    for shown in (r"new\nline.png", r"red\x1b[31m.png", r"latin\udce9.png", r"\u202egnp.png"):
        assert f"{shown}: " in said
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


@pytest.mark.parametrize("closed", ["stdout", "both"])
def test_a_closed_pipe_ends_quietly(photos, closed):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "wilson", "ops"]
    errors = writer if closed == "both" else subprocess.PIPE
    run = subprocess.run(command, stdout=writer, stderr=errors, text=True, check=False)
    os.close(writer)
    assert (run.returncode, run.stderr or "") == (141, "")

"""Segmenting images: files, folders and patterns, batches, broken images, and the Python API."""

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
from wilson.inference.predict import Predictor, check_images, find_images, predict


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
        assert Image.open(path.with_name(f"{path.stem}_overlay.jpg")).size == Image.open(photos / name).size
        seen |= set(np.unique(mask))
    assert seen <= {0, 1, 2, 4} and 4 in seen


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

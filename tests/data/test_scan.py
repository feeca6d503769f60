"""Masks are scanned once, and again when, and only when, their contents change."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL.Image import Image

from tests.support.data_sets import box, files_under, mask_of, write_image, write_instances, write_voc
from wilson.data import scan as scanning
from wilson.data.cache import cache_folder
from wilson.data.opening import open_source
from wilson.data.scan import broken, scan
from wilson.data.sources.views import Matched
from wilson.data.sources.voc import VOCFolder


@pytest.fixture
def masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = [tmp_path / "masks" / name for name in ("a.png", "b.png")]
    write_image(paths[0], mask_of(0, 1, 254, 255))
    write_image(paths[1], mask_of(0, 3))
    return paths


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The masks that are decoded from here on."""
    decoded: list[Path] = []
    read = scanning.read_mask

    def noted(path: Path) -> Image:
        decoded.append(path)
        return read(path)

    monkeypatch.setattr(scanning, "read_mask", noted)
    return decoded


def cached_files() -> set[Path]:
    folder = cache_folder()
    assert folder is not None
    return files_under(folder)


FOUND = [frozenset({0, 1, 254}), frozenset({0, 3})]


def test_second_scan_comes_from_the_cache(masks: list[Path], reads: list[Path]) -> None:
    assert scan(masks) == FOUND
    assert reads == masks
    assert scan(masks) == FOUND
    assert reads == masks
    assert [path.parent for path in cached_files()] == [cache_folder()]


def test_moved_masks_are_known_and_a_changed_one_is_not(masks: list[Path], reads: list[Path]) -> None:
    scan(masks)
    moved = shutil.copytree(masks[0].parent, masks[0].parent.with_name("moved"))
    reads.clear()
    assert scan([moved / path.name for path in masks]) == FOUND
    assert reads == []
    size, time = masks[1].stat().st_size, masks[1].stat().st_mtime_ns
    write_image(masks[1], mask_of(0, 4))
    os.utime(masks[1], ns=(time, time))
    assert masks[1].stat().st_size == size, "the change should not show in the file's size"
    assert scan(masks) == [FOUND[0], frozenset({0, 4})]


def test_order_matters(masks: list[Path]) -> None:
    scan(masks)
    assert scan(masks[::-1]) == FOUND[::-1]


@pytest.mark.parametrize("text", ["", "[[1]]", '{"a": 1}', "[[1, 254], [3]"])
def test_broken_cache_is_replaced(masks: list[Path], reads: list[Path], text: str) -> None:
    scan(masks)
    (cache,) = cached_files()
    whole = cache.read_text()
    cache.write_text(text)
    reads.clear()
    assert scan(masks) == FOUND
    assert reads == masks
    assert cache.read_text() == whole


def test_works_without_a_writable_cache(masks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert scan(masks) == FOUND
    assert (tmp_path / "file").read_text() == "in the way"


def test_cache_is_in_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for elsewhere in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", elsewhere)
        assert cache_folder() == Path("/home/someone/.cache/wilson/scans")


def test_shows_progress(masks: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    scan(masks)
    assert "2/2" in capsys.readouterr().err
    scan(masks)
    assert capsys.readouterr().err == ""


def test_masks_that_cannot_be_read_are_told_apart(masks: list[Path], reads: list[Path]) -> None:
    masks[0].write_bytes(masks[0].read_bytes()[:60])
    masks[1].unlink()
    assert scan(masks) == [None, None]
    write_image(masks[1], mask_of(0, 3))
    assert scan(masks) == [None, FOUND[1]], "a file that was missing is another file once it is there"


def test_a_mended_json_is_looked_at_anew(tmp_path: Path) -> None:
    wrong, right = ({"category_id": 1, "segmentation": shape, "area": 1} for shape in (None, box(0, 0, 2, 2)))
    for shapes, expected in (([wrong, right], [0]), ([right, right], []), ([right, wrong], [1])):
        write_instances(tmp_path, "val2017", {f"{number}.jpg": [shape] for number, shape in enumerate(shapes)})
        source = open_source(tmp_path, "val2017")
        assert broken(source, range(2)) == expected
        assert broken(Matched(source, source.classes, "there"), range(2)) == expected


def test_faulty_images_are_found_once(masks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_voc(tmp_path / "voc", {name: mask_of(0, 1) for name in "abcde"})
    (root / "JPEGImages" / "b.jpg").write_bytes((root / "JPEGImages" / "b.jpg").read_bytes()[:-300])
    (root / "SegmentationClass" / "c.png").write_bytes(b"no PNG")
    write_image(root / "SegmentationClass" / "d.png", mask_of(0, 1, size=(8, 11)))
    source = VOCFolder(root)
    assert broken(source, range(5)) == [1, 2, 3]
    monkeypatch.setattr(source, "image", lambda index: pytest.fail("read again"))
    assert broken(source, range(5)) == [1, 2, 3]

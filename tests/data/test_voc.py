"""Folders in the VOC layout are read as they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.data_sets import CLASSES, files_under, mask_of, write_image, write_labels, write_voc
from wilson.data.opening import open_source
from wilson.data.sources.base import class_sets
from wilson.data.sources.voc import VOC_CLASSES, VOCFolder
from wilson.errors import UserError

MASKS = {"one": mask_of(0, 1, 255), "two": mask_of(0, 2, 5), "three": mask_of(0, 0)}


def test_reads_images_masks_and_classes_of_a_split(tmp_path: Path) -> None:
    write_voc(tmp_path, MASKS, lists={"train": ["three", "one"], "val": ["two"]})
    train = VOCFolder(tmp_path, "train")
    assert train.classes == CLASSES
    assert list(train.names) == ["three", "one"]
    assert class_sets(train) == [frozenset(), frozenset({1})]
    assert train.image(1).mode == "RGB"
    assert train.image(1).tobytes() == Image.open(tmp_path / "JPEGImages" / "one.jpg").tobytes()
    assert train.has_mask(1)
    np.testing.assert_array_equal(train.mask(1), MASKS["one"])
    val = open_source(tmp_path, "val")
    assert class_sets(val) == [frozenset({2, 5})]


def test_classes_are_vocs_without_classes_txt(tmp_path: Path) -> None:
    write_voc(tmp_path, MASKS, classes=None)
    assert VOCFolder(tmp_path).classes == VOC_CLASSES
    assert len(VOC_CLASSES) == 21


def test_palette_masks_give_ids_not_colours(tmp_path: Path) -> None:
    write_voc(tmp_path, MASKS)
    mask = Image.fromarray(MASKS["two"])
    mask.putpalette([0, 0, 0, *[200, 10, 10] * 255])
    mask.save(tmp_path / "SegmentationClass" / "two.png")
    np.testing.assert_array_equal(VOCFolder(tmp_path).mask(1), MASKS["two"])


def test_augmented_masks_are_preferred(tmp_path: Path) -> None:
    write_voc(tmp_path, MASKS)
    for name in MASKS:
        write_image(tmp_path / "SegmentationClassAug" / f"{name}.png", mask_of(0, 4))
    assert class_sets(VOCFolder(tmp_path)) == [frozenset({4})] * 3


def test_lists_may_hold_paths_of_image_and_mask(tmp_path: Path) -> None:
    write_voc(
        tmp_path, MASKS, lists={"train_aug": ["/JPEGImages/two.jpg /other/2.png", "JPEGImages/one.jpg /other/1.png"]}
    )
    write_image(tmp_path / "other" / "1.png", mask_of(0, 3))
    write_image(tmp_path / "other" / "2.png", mask_of(0, 4))
    source = VOCFolder(tmp_path, "train_aug")
    assert list(source.names) == ["two", "one"]
    assert class_sets(source) == [frozenset({4}), frozenset({3})]
    assert source.image(0).tobytes() == Image.open(tmp_path / "JPEGImages" / "two.jpg").tobytes()


def test_png_images_and_names_in_subfolders(tmp_path: Path) -> None:
    write_voc(tmp_path, {"first/a": MASKS["one"]}, lists={"train": ["first/a", "b"]})
    write_image(tmp_path / "JPEGImages" / "b.png", np.full((8, 12), 7))
    write_image(tmp_path / "SegmentationClass" / "b.png", MASKS["two"])
    source = VOCFolder(tmp_path)
    assert list(source.names) == ["first/a", "b"]
    assert source.image(1).getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize(
    "line", ["../outside", "a/../../outside", "/../x.jpg /m.png", "/JPEGImages/one.jpg ../../m.png"]
)
def test_lists_cannot_lead_out_of_the_folder(tmp_path: Path, line: str) -> None:
    write_voc(tmp_path / "set", MASKS, lists={"train": ["one", line]})
    with pytest.raises(UserError, match=r"train.txt: .*must stay inside"):
        VOCFolder(tmp_path / "set")


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write_voc(tmp_path / "disk", MASKS)
    (tmp_path / "set").mkdir()
    for name in ("JPEGImages", "SegmentationClass", "ImageSets", "classes.txt"):
        (tmp_path / "set" / name).symlink_to(tmp_path / "disk" / name)
    assert class_sets(VOCFolder(tmp_path / "set")) == [{1}, {2, 5}, set()]


def test_labels_serve_where_there_are_no_masks(tmp_path: Path) -> None:
    write_voc(tmp_path, MASKS, with_masks=False)
    write_labels(tmp_path, ["one 1 cat", "three", "", "two 0 2 5"])
    source = VOCFolder(tmp_path)
    assert class_sets(source) == [frozenset({1, 3}), frozenset({2, 5}), frozenset()]
    assert source.mask(0) is None
    assert not source.has_mask(0)


def test_masks_count_where_there_are_masks_and_labels(tmp_path: Path) -> None:
    write_voc(tmp_path, MASKS)
    write_labels(tmp_path, ["one 4", "two 4", "three 4"])
    (tmp_path / "SegmentationClass" / "three.png").unlink()
    assert class_sets(VOCFolder(tmp_path)) == [frozenset({1}), frozenset({2, 5}), frozenset({4})]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["one 1 wolf"], "line 1: unknown class 'wolf'"),
        (["one 1", "two 6"], "line 2: unknown class '6'; expected ids from 1 to 5"),
        (["one 1", "one 2"], "line 2: image 'one' has a line already"),
        (["one 1", "two 2"], "image 'three' .* has neither a mask nor a line .*1 of 3"),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, lines: list[str], expected: str) -> None:
    write_voc(tmp_path, MASKS, with_masks=False)
    write_labels(tmp_path, lines)
    with pytest.raises(UserError, match=expected):
        VOCFolder(tmp_path)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["ant", "bee"], "'background' first"),
        (["background"], "'background' first"),
        ([], "'background' first"),
        (["background", "ant", "ant"], "line 3 repeats 'ant'"),
        (["background", "", "ant"], "line 2 is empty"),
        (["background", *map(str, range(255))], "at most 255 classes .*got 256"),
    ],
)
def test_malformed_classes_txt_is_refused(tmp_path: Path, lines: list[str], expected: str) -> None:
    write_voc(tmp_path, MASKS, classes=lines)
    with pytest.raises(UserError, match=expected):
        VOCFolder(tmp_path)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        VOCFolder(tmp_path / "nowhere")
    write_voc(tmp_path, MASKS, lists={"train": ["one", "four", "five"], "empty": [], "twice": ["one", "two", "one"]})
    with pytest.raises(UserError, match=r"vla.txt: no such list; the folder has empty, train"):
        VOCFolder(tmp_path, "vla")
    with pytest.raises(UserError, match=r"four.jpg: no such image.*2 of 3"):
        VOCFolder(tmp_path)
    with pytest.raises(UserError, match=r"empty.txt: lists no image"):
        VOCFolder(tmp_path, "empty")
    with pytest.raises(UserError, match=r"twice.txt: lists 'one' 2 times"):
        VOCFolder(tmp_path, "twice")


def test_unusable_files_are_named(tmp_path: Path) -> None:
    write_voc(tmp_path, MASKS)
    (tmp_path / "JPEGImages" / "one.jpg").write_bytes((tmp_path / "JPEGImages" / "one.jpg").read_bytes()[:200])
    write_image(tmp_path / "SegmentationClass" / "two.png", np.zeros((8, 12, 3)))
    (tmp_path / "SegmentationClass" / "three.png").write_text("not a PNG")
    source = VOCFolder(tmp_path)
    with pytest.raises(UserError, match=r"one.jpg: cannot be read"):
        source.image(0)
    with pytest.raises(UserError, match=r"two.png: expected a mask of one channel.*got mode RGB"):
        source.mask(1)
    with pytest.raises(UserError, match=r"three.png: cannot be read"):
        source.mask(2)


def test_ids_beyond_the_classes_are_refused_with_the_file(tmp_path: Path) -> None:
    write_voc(tmp_path, {**MASKS, "four": mask_of(0, 6)})
    with pytest.raises(UserError, match=r"four.png: holds the ids \[6\], but the classes are 0 to 5"):
        class_sets(VOCFolder(tmp_path))


def test_masks_that_cannot_be_read_are_named_when_their_classes_are_asked_for(tmp_path: Path) -> None:
    write_voc(tmp_path, MASKS)
    (tmp_path / "SegmentationClass" / "two.png").write_bytes(b"no PNG")
    source = VOCFolder(tmp_path)
    assert source.class_ids(0) == {1}
    with pytest.raises(UserError, match=r"two.png: cannot be read"):
        class_sets(source)


def test_reading_writes_nothing_into_the_data_set(tmp_path: Path) -> None:
    write_voc(tmp_path, MASKS)
    before = files_under(tmp_path)
    source = VOCFolder(tmp_path)
    class_sets(source)
    source.image(0), source.mask(0)
    assert files_under(tmp_path) == before

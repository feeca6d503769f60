"""Which files are images, and how the names that people write lead to them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from tests.support.data_sets import CLASSES, mask_of, write_image, write_labels, write_stuff_maps, write_text, write_voc
from wilson.data.check import check, render
from wilson.data.files import EXTENSIONS, Finder, images_below, is_data, named_data
from wilson.data.names import find_id
from wilson.data.opening import open_source
from wilson.data.sources.base import class_sets
from wilson.data.sources.coco import coco_splits
from wilson.data.sources.labelled import open_labelled, open_negatives
from wilson.data.sources.voc import Lists, VOCFolder, splits
from wilson.data.tasks import Task
from wilson.errors import UserError

MASKS = {"one": mask_of(0, 1), "two": mask_of(0, 2, 5)}
SIDE = ("._one.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/one-checkpoint.jpg",
        "__MACOSX/one.jpg", "__MACOSX/._one.jpg", "@eaDir/one.jpg/THUMB_M.jpg", ".Trash/x.png")  # fmt: skip


def put_side_files(folder: Path) -> None:
    for name in SIDE:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\x00\x05\x16\x07 no picture")


@pytest.mark.parametrize("name", SIDE)
def test_side_files_are_no_data(name: str) -> None:
    assert not is_data(PurePosixPath(name))


@pytest.mark.parametrize("name", ["a.jpg", "../a.jpg", "./a.jpg", "a..jpg", "macosx/a.jpg", "thumbs/a.jpg"])
def test_other_files_are_data(name: str) -> None:
    assert is_data(PurePosixPath(name))


def test_side_files_are_passed_over_in_every_folder(tmp_path: Path) -> None:
    for folder in ("bee", "eel/more"):
        write_image(tmp_path / "own" / folder / "a.jpg", np.zeros((4, 6, 3)))
        put_side_files(tmp_path / "own" / folder)
    put_side_files(tmp_path / "own")
    assert images_below(tmp_path / "own") == [tmp_path / "own" / name for name in ("bee/a.jpg", "eel/more/a.jpg")]
    assert open_negatives(tmp_path / "own", CLASSES).names == ["bee/a", "eel/more/a"]
    write_stuff_maps(tmp_path / "coco", "train", {"one": mask_of(0)})
    for folder in ("images/train", "annotations/train", "images/.ipynb_checkpoints", "annotations/.ipynb_checkpoints"):
        put_side_files(tmp_path / "coco" / folder)
    assert coco_splits(tmp_path / "coco") == ["train"]
    assert list(open_source(tmp_path / "coco", "train").names) == ["one"]
    hidden = tmp_path / ".cache" / "photos"  # only what lies below the folder counts
    write_image(hidden / "a.jpg", np.zeros((4, 6, 3)))
    assert images_below(hidden) == [hidden / "a.jpg"]


def test_class_folders_of_tools_are_no_classes(tmp_path: Path) -> None:
    write_image(tmp_path / "bee" / "a.jpg", np.zeros((4, 6, 3)))
    put_side_files(tmp_path)
    assert open_labelled(tmp_path, CLASSES).names == ["bee/a"]


def test_side_files_are_passed_over_in_lists(tmp_path: Path) -> None:
    root = write_voc(tmp_path, MASKS, lists={"train": [".", "..", *SIDE, "one", "two"][2:]})
    for name in ("._train.txt", ".train.txt.swp"):
        (root / "ImageSets" / "Segmentation" / name).write_bytes(b"\xff\xfe\x00")
    write_labels(root, [".DS_Store 1", "one 1", "two 2 5"])
    assert splits(root) == ["train"]
    assert list(VOCFolder(root).names) == ["one", "two"]
    assert check(root).errors == ()
    for file, lines in (("l.txt", ["._one.jpg wolf", "one 1"]), ("l.csv", ["image,class", "Thumbs.db,wolf", "one,1"])):
        write_text(tmp_path / file, lines)
        assert open_labelled(tmp_path / file, CLASSES, [root / "JPEGImages"]).names == ["one"]


@pytest.mark.parametrize("listed", ["x", "x.jpg", "./x", "x.PNG", r"\x.jpg"])
def test_names_lead_to_files_of_every_format(tmp_path: Path, listed: str) -> None:
    for number, extension in enumerate((*EXTENSIONS, ".JPG", ".Jpeg", ".PNG", ".TIF")):
        images, mask = tmp_path / str(number) / "JPEGImages", tmp_path / str(number) / "SegmentationClass" / "x.PNG"
        for file in (images / f"x{extension}", mask):
            file.parent.mkdir(parents=True)
            file.touch()
        entry = Lists(tmp_path / str(number)).entry("train", listed)
        assert (entry.name, entry.image, entry.mask) == ("x", images / f"x{extension}", mask)


@pytest.mark.parametrize(
    "lines",
    [
        ["one.jpg", "two.jpg"],
        ["./one", "./two"],
        [r".\one.jpg", r".\two.JPG"],
        ["JPEGImages/one.jpg", "JPEGImages/two.jpg"],
        [r"JPEGImages\one.jpg SegmentationClass\one.png", r"/JPEGImages/two.jpg ./SegmentationClass/two.png"],
        ["JPEGImages/one.JPG SegmentationClass/one.PNG", "JPEGImages/two.JPEG SegmentationClass/two.Png"],
    ],
)
def test_lists_as_systems_and_tools_write_them(tmp_path: Path, lines: list[str]) -> None:
    source = VOCFolder(write_voc(tmp_path, MASKS, lists={"train": lines}))
    assert list(source.names) == ["one", "two"]
    assert class_sets(source) == [{1}, {2, 5}]
    assert check(tmp_path).errors == ()


@pytest.mark.parametrize("suffix", [".PNG", ".bmp", ".TIFF"])
def test_masks_of_every_format_that_keeps_ids(tmp_path: Path, suffix: str) -> None:
    root = write_voc(tmp_path, MASKS, with_masks=False)
    for name, mask in MASKS.items():
        write_image(root / "SegmentationClass" / f"{name}{suffix}", mask)
    assert class_sets(VOCFolder(root)) == [{1}, {2, 5}]


def test_labels_may_name_images_with_extension(tmp_path: Path) -> None:
    write_voc(tmp_path, MASKS, with_masks=False)
    write_labels(tmp_path, ["one.jpg 1", r".\two.JPG 2"])
    assert class_sets(VOCFolder(tmp_path)) == [{1}, {2}]
    write_labels(tmp_path, ["one.jpg 1", "one 2", "two 2"])
    with pytest.raises(UserError, match="line 2: image 'one' has a line already"):
        VOCFolder(tmp_path)


def test_a_mask_that_the_augmented_folder_lacks_is_taken_from_the_other(tmp_path: Path) -> None:
    root = write_voc(tmp_path, MASKS)
    write_image(root / "SegmentationClassAug" / "one.png", mask_of(0, 4))
    assert class_sets(VOCFolder(root)) == [{4}, {2, 5}]
    (root / "SegmentationClass" / "two.png").unlink()
    with pytest.raises(UserError, match=r"looked for .*Aug/two or .*SegmentationClass/two with \.png, \.bmp"):
        VOCFolder(root)
    (error,) = check(root).errors
    assert "looked for SegmentationClassAug/two or SegmentationClass/two with .png" in error.text


def test_exact_names_and_the_first_format_win(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.JPG", "b.jpg.png", "b.jpg", "c.v2.PNG", "d/e.bmp", "f.jp2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    find = Finder([tmp_path / "nowhere", tmp_path])
    found = {name: find(PurePosixPath(name)) for name in ("a", "a.png", "a.JPG", "b.jpg", "c.v2", "d/e", "f", "f.jp2")}
    assert {name: file and file.relative_to(tmp_path).as_posix() for name, file in found.items()} == {
        "a": "a.jpg", "a.png": "a.png", "a.JPG": "a.JPG", "b.jpg": "b.jpg", "c.v2": "c.v2.PNG", "d/e": "d/e.bmp",
        "f": None, "f.jp2": None,
    }  # fmt: skip
    assert find(PurePosixPath("bad\0name/x")) is None


def test_blank_lines_are_no_lines() -> None:
    assert named_data(["", "  a ", "\t", "._a", "b c"]) == ["a", "b c"]


DIGITS = ("background", "3", "1", "name:x", "15-5", "offline")


@pytest.mark.parametrize(
    ("word", "expected"),
    [("3", 1), ("1", 2), ("2", 2), ("id:3", 3), ("id:1", 1), ("name:3", 1), ("name:2", None), ("6", None),
     ("id:6", None), ("name:x", 3), ("name:name:x", 3), ("-1", None), ("id:", None), ("15-5", 4)],
)  # fmt: skip
def test_a_class_that_is_named_by_a_number_goes_before_the_id(word: str, expected: int | None) -> None:
    assert find_id(word, DIGITS) == expected


def test_numbers_are_names_first_in_tasks_and_labels(tmp_path: Path) -> None:
    assert Task.parse("3/1", DIGITS).steps == ((1,), (2,))
    assert Task.parse("id:3,id:1/name:1", DIGITS).steps == ((3, 1), (2,))
    assert Task.parse("name:15-5/name:offline", DIGITS).steps == ((4,), (5,))
    assert Task.parse("2-3", DIGITS).steps == ((1, 2), (3, 4, 5))
    write_image(tmp_path / "3" / "a.jpg", np.zeros((4, 6, 3)))
    assert class_sets(open_labelled(tmp_path, DIGITS)) == [{1}]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["background", "ant", "Ant"], "line 3 is 'Ant', which differs from 'ant' by case only"),
        (["background", "Background"], "line 2 is 'Background', which differs from 'background' by case only"),
        (["background", "STRASSE", "straße"], "line 3 is 'straße', which differs from 'STRASSE' by case only"),
        (["background", "ant\x1b[31m"], r"line 2 holds characters that cannot be printed: 'ant\\x1b"),
    ],
)
def test_names_that_would_overwrite_each_other_are_refused(tmp_path: Path, lines: list[str], expected: str) -> None:
    write_voc(tmp_path, MASKS, classes=lines)
    with pytest.raises(UserError, match=expected):
        VOCFolder(tmp_path)


def test_an_image_in_two_class_folders_is_one_image_with_both_classes(tmp_path: Path) -> None:
    for number, name in enumerate(("bee/1.jpg", "bee/2.jpg", "eel/9.jpg", "background/3.jpg")):
        write_image(tmp_path / name, np.full((4, 6, 3), 9 * number))
    (tmp_path / "eel" / "other.jpg").write_bytes((tmp_path / "bee" / "2.jpg").read_bytes())
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "link.jpg").symlink_to(tmp_path / "bee" / "2.jpg")
    source = open_labelled(tmp_path, CLASSES)
    held = dict(zip(source.names, class_sets(source), strict=True))
    assert held == {"background/3": set(), "bee/1": {2}, "bee/2": {2, 4, 5}, "eel/9": {5}}


def test_check_says_where_the_classes_come_from(tmp_path: Path) -> None:
    write_voc(tmp_path, MASKS)
    assert "6 classes, background included (of classes.txt)" in render(check(tmp_path))
    (tmp_path / "classes.txt").unlink()
    assert "21 classes, background included (VOC's, because there is no classes.txt)" in render(check(tmp_path))


def test_check_finds_masks_drawn_as_0_and_255(tmp_path: Path) -> None:
    write_voc(tmp_path, {"a": mask_of(0, 255), "b": mask_of(255, 0, 0)}, classes=("background", "lesion"))
    (error,) = check(tmp_path).errors
    assert "255 is probably the class" in error.text and "such as 1 (lesion)" in error.text

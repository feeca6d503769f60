"""The check counts what is there, names what is wrong with its file, and guesses why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.data_sets import CLASSES, files_under, mask_of, write_image, write_labels, write_text, write_voc
from wilson.data import tasks as protocols
from wilson.data.check import Report, check, render
from wilson.data.names import COCO_GAPS
from wilson.errors import UserError

# 8 rows of 12 pixels; together they hold every class.
MASKS = {"a": mask_of(0, 1, 255, 2), "b": mask_of(0, 3), "c": mask_of(0, 4, 5, 1), "d": mask_of(0, 2, 3, 0)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_voc(tmp_path, MASKS)


def problems(report: Report) -> dict[str, str]:
    assert len({problem.file for problem in report.errors}) == len(report.errors)
    return {problem.file: problem.text for problem in report.errors}


def moved(masks: dict[str, np.ndarray], by: int, *, zero: int | None = None) -> dict[str, np.ndarray]:
    """Masks with other ids: each moved, but 255, and 0 become `zero` if given."""
    result = {}
    for name, mask in masks.items():
        ids = np.where(mask == 255, 255, mask.astype(int) + by)
        result[name] = np.where(mask == 0, ids if zero is None else zero, ids).astype(np.uint8)
    return result


def test_a_good_data_set_is_counted_and_has_no_errors(root: Path) -> None:
    write_text(root / "ImageSets" / "Segmentation" / "val.txt", [])
    write_voc(root, {"v": mask_of(0, 1, 2, 3)}, lists={"val": ["v"]})
    before = files_under(root)
    report = check(root, task="2-2", protocol="disjoint")
    train, val = report.splits
    assert report.errors == ()
    assert report.classes == CLASSES
    assert (train.name, train.images, train.masks) == ("train", 4, 4)
    assert train.class_images == (4, 2, 2, 2, 1, 1)
    assert train.class_pixels == (24 + 48 + 24 + 48, 24 + 24, 24 + 24, 48 + 24, 24, 24)
    assert train.steps == (1, 2, 1)
    assert (val.name, val.images, val.class_images, val.steps) == ("val", 1, (1, 1, 1, 1, 0, 0), (0, 1, 0))
    assert check(root, task="2-2", protocol="overlap").splits[0].steps == (3, 3, 1)
    assert check(root).splits[0].steps == ()
    assert files_under(root) == before


def test_broken_files_are_each_named(root: Path) -> None:
    image = root / "JPEGImages" / "a.jpg"
    image.write_bytes(image.read_bytes()[:200])
    (root / "JPEGImages" / "b.jpg").unlink()
    (root / "SegmentationClass" / "c.png").write_bytes(b"")
    write_image(root / "SegmentationClass" / "d.png", np.zeros((8, 12, 3)))
    found = problems(check(root))
    assert set(found) == {"JPEGImages/a.jpg", "JPEGImages/b.jpg", "SegmentationClass/c.png", "SegmentationClass/d.png"}
    assert found["JPEGImages/a.jpg"].startswith("cannot be read")
    assert found["JPEGImages/b.jpg"].startswith("no such image, nor one with another extension (.jpg, .jpeg, ")
    assert found["SegmentationClass/c.png"].startswith("cannot be read")
    assert "one channel" in found["SegmentationClass/d.png"]


def test_masks_of_another_size_are_named_and_those_of_turned_photographs_fit(root: Path) -> None:
    write_image(root / "SegmentationClass" / "a.png", mask_of(0, 1, 2, size=(9, 12)))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 12)).save(root / "JPEGImages" / "b.jpg", exif=exif)
    found = problems(check(root))
    assert found["SegmentationClass/a.png"] == "is 12x9 pixels, the image 12x8"
    assert set(found) == {"SegmentationClass/a.png"}, "the mask of b was drawn on the upright image"


def test_wrong_lines_of_lists_are_named(root: Path) -> None:
    write_text(root / "ImageSets" / "Segmentation" / "train.txt", ["a", "b", "c", "d", "a"])
    write_text(root / "ImageSets" / "Segmentation" / "other.txt", ["../x"])
    write_text(root / "ImageSets" / "Segmentation" / "third.txt", ["a", "b", "c", "d e f"])
    report = check(root)
    texts = [(problem.file, problem.text) for problem in report.errors]
    assert (
        "ImageSets/Segmentation/train.txt",
        "lists 'a' 2 times; list each image once",
    ) in texts
    assert any(file.endswith("other.txt") and "'../x'" in text for file, text in texts)
    assert any(file.endswith("third.txt") and "'d e f'" in text for file, text in texts)
    assert report.splits[2].images == 4


def test_missing_masks_are_errors_only_without_labels(root: Path) -> None:
    for name in ("a", "b"):
        (root / "SegmentationClass" / f"{name}.png").unlink()
    write_labels(root, ["a 1 2"])
    report = check(root)
    assert list(problems(report)) == ["SegmentationClass/b.png"]
    assert "no line for 'b'" in problems(report)["SegmentationClass/b.png"]
    write_labels(root, ["a 1 2", "b cat"])
    report = check(root)
    assert report.errors == ()
    assert report.splits[0].masks == 2
    assert report.splits[0].class_images == (2, 2, 2, 2, 1, 1)
    assert any("2 of 4 images have no mask" in warning.text for warning in report.warnings)


def test_unknown_ids_are_named(root: Path) -> None:
    write_image(root / "SegmentationClass" / "c.png", mask_of(0, 9, 40, 1))
    found = problems(check(root))
    assert found["SegmentationClass/c.png"] == "unknown ids 9 (24 pixels), 40 (24 pixels); the classes are 0 to 5"
    assert "classes.txt in the data set's folder lacks names" in found["SegmentationClass"]
    assert "9, 40" in found["SegmentationClass"]


def cause(root: Path, masks: dict[str, np.ndarray], classes: tuple[str, ...] = CLASSES) -> str:
    report = check(write_voc(root, masks, classes=classes))
    return problems(report).get("SegmentationClass", "no cause given")


def test_ids_one_too_high(tmp_path: Path) -> None:
    everything = cause(tmp_path / "all", moved(MASKS, 1))
    assert "one too high: no mask holds 0" in everything
    assert "subtract 1 from every id but 255" in everything
    but_background = cause(tmp_path / "classes", moved(MASKS, 1, zero=0))
    assert "one too high: no mask holds 1 (ant)" in but_background
    assert "but 0 and 255" in but_background


def test_ids_one_too_low_with_255_as_background(tmp_path: Path) -> None:
    text = cause(tmp_path, moved(MASKS, -1, zero=255))
    assert "one too low: no mask holds the last class (5, eel)" in text
    assert "add 1 to every id" in text


def test_cocos_ids_with_gaps(tmp_path: Path) -> None:
    ids = [class_id for class_id in range(1, 91) if class_id not in COCO_GAPS]
    assert len(ids) == 80
    masks = {f"m{i}": mask_of(0, *ids[i : i + 20], size=(42, 12)) for i in range(0, 80, 20)}
    assert "COCO's category ids" in cause(tmp_path, masks, ("background", *(f"class{i}" for i in range(80))))


@pytest.mark.parametrize(("by", "direction"), [(1, "high"), (-1, "low")])
def test_labels_unmask_ids_that_are_off_by_one(tmp_path: Path, by: int, direction: str) -> None:
    masks = {"a": mask_of(0, 3), "b": mask_of(0, 2, 4)}
    write_voc(tmp_path, moved(masks, by, zero=0))
    write_labels(tmp_path, ["a 3", "b 2 4"])
    assert f"one too {direction}" in problems(check(tmp_path))["SegmentationClass"]


def test_masks_and_labels_that_differ_are_a_warning(root: Path) -> None:
    write_labels(root, ["a 1 2", "b 3 4", "c 1 4 5", "d 2 3"])
    report = check(root)
    assert report.errors == ()
    (warning,) = [warning for warning in report.warnings if warning.file == "SegmentationClass/b.png"]
    assert "holds [3], image_labels.txt says [3, 4]; they differ in 1 of 4 images" in warning.text


def test_much_void_alone_is_no_error(tmp_path: Path) -> None:
    assert cause(tmp_path, {"a": mask_of(0, 255, 255, 5), "b": mask_of(255, 1, 2, 3)}) == "no cause given"


def test_absent_classes_and_shared_images_are_warnings(root: Path) -> None:
    write_voc(root, MASKS, lists={"train": list(MASKS), "val": ["b", "d"], "trainval": list(MASKS)})
    report = check(root)
    assert report.errors == ()
    texts = [f"{warning.file}: {warning.text}" for warning in report.warnings]
    assert texts == [
        "ImageSets/Segmentation/val.txt: no image holds ant, dog, eel",
        "ImageSets/Segmentation/val.txt: shares 2 images with train, such as 'b': results on them say little",
    ]
    of_task = check(root, task="1,2,3")
    assert any(warning.text == "no image holds ant" for warning in of_task.warnings), "only the task's classes matter"


def test_mistakes_of_the_caller_are_not_errors_of_the_data(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        check(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no lists"):
        check(tmp_path / "JPEGImages")
    with pytest.raises(UserError, match="class 'wolf'"):
        check(root, task="wolf")
    with pytest.raises(UserError, match="disjoint or overlap"):
        check(root, protocol="disjunct")
    write_text(root / "classes.txt", ["ant", "bee"])
    with pytest.raises(UserError, match="'background' first"):
        check(root)


def test_published_split_sizes_are_compared(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "VOC_CLASSES", CLASSES)
    monkeypatch.setattr(protocols, "VOC_IMAGES", 4)
    task = "2-2"
    monkeypatch.setattr(protocols, "PUBLISHED", {(4, task, "disjoint"): (1, 2, 1), (4, task, "overlap"): (3, 4, 1)})
    report = check(root, task, "disjoint")
    assert "train: matches the published split sizes" in render(report).splitlines()
    assert report.warnings == ()
    report = check(root, task, "overlap")
    assert "matches the published" not in render(report)
    (warning,) = report.warnings
    assert warning.text == "the steps hold 3, 3, 1 images, those of the published splits 3, 4, 1"
    assert check(root, "3-2", "disjoint").splits[0].as_published is None


def test_text_for_the_terminal_holds_counts_and_problems(root: Path) -> None:
    write_image(root / "SegmentationClass" / "c.png", mask_of(0, 9, 4, 5))
    text = render(check(root, task="2-2", protocol="disjoint"))
    rows = [line.split() for line in text.splitlines()]
    assert ["list", "images", "masks", "step", "0", "step", "1", "step", "2"] in rows
    assert ["train", "4", "4", "1", "2", "1"] in rows
    assert ["3", "cat", "2", "21.4"] in rows
    assert "2 errors" in text
    assert "  SegmentationClass/c.png: unknown ids 9 (24 pixels)" in text
    assert "0 warnings" in text


def test_long_lists_of_errors_are_cut_short(tmp_path: Path) -> None:
    write_voc(tmp_path, {"a": mask_of(0, 1)}, lists={"train": ["a", *(f"missing{i}" for i in range(30))]})
    report = check(tmp_path)
    assert len(report.errors) == 30
    assert "... and 10 more" in render(report)
    assert render(report).count("no such image") == 20


@pytest.mark.parametrize(
    ("ids", "task", "share"),
    [((1, 2, 4, 5), None, "0.0"), ((1, 2, 3, 4), "1,2/3,4", "0.0"), ((0, 1, 2, 3), None, ""), ((1, 2, 4), "1/2", "")],
)
def test_data_without_a_background_is_warned_of(
    tmp_path: Path, ids: tuple[int, ...], task: str | None, share: str
) -> None:
    """Classes that the task leaves out are background, too."""
    warnings = [w.text for w in check(write_voc(tmp_path, {"a": mask_of(*ids)}), task).warnings]
    found = [text for text in warnings if text.startswith("background covers")]
    assert len(found) == bool(share) and all(f"covers {share} %" in text for text in found)

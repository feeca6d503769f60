"""Image-level labels from folders, CSV files and lists; negatives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.data_sets import CLASSES, write_image, write_text
from wilson.data.sources.base import ImageSource, class_sets
from wilson.data.sources.labelled import Labelled, open_labelled, open_negatives
from wilson.data.sources.saliency import Saliency
from wilson.errors import UserError


def write_images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        write_image(root / name, np.full((4, 6, 3), number))
    return root


def held(source: Labelled, root: Path) -> dict[str, set[int]]:
    files = [source.files(index)[0].relative_to(root).as_posix() for index in range(len(source.names))]
    return {file: set(ids) for file, ids in zip(files, class_sets(source), strict=True)}


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    write_images(tmp_path, "bee/1.jpg", "bee/more/2.PNG", "5/1.jpg", "background/3.jpg")
    (tmp_path / "bee" / "notes.txt").write_text("no image")
    source = open_labelled(tmp_path, CLASSES)
    assert held(source, tmp_path) == {
        "bee/1.jpg": {2}, "bee/more/2.PNG": {2}, "5/1.jpg": {5}, "background/3.jpg": set(),
    }  # fmt: skip
    assert source.image(0).size == (6, 4)
    masks: ImageSource = source
    assert masks.mask(0) is None and not masks.has_mask(0)


def test_csv_with_a_row_for_each_class(tmp_path: Path) -> None:
    write_images(tmp_path, "own/a.jpg", "b.png")
    write_text(tmp_path / "labels.csv", ["image,class", "own/a.jpg,bee", "b,4", "own/a.jpg, eel", ""])
    assert held(open_labelled(tmp_path / "labels.csv", CLASSES), tmp_path) == {"own/a.jpg": {2, 5}, "b.png": {4}}


def test_csv_with_a_column_for_each_class(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    write_text(tmp_path / "labels.csv", ["image,eel,bee", "a.jpg,1,1", "b.jpg,0,1", "c.jpg,0,0"])
    source = open_labelled(tmp_path / "labels.csv", CLASSES)
    assert held(source, tmp_path) == {"a.jpg": {2, 5}, "b.jpg": {2}, "c.jpg": set()}


def test_list_of_labels_finds_images_beside_it_and_in_the_data_set(tmp_path: Path) -> None:
    write_images(tmp_path, "here/a.jpg", "set/b.jpg")
    write_text(tmp_path / "here" / "labels.txt", ["a 1 bee", "", "b dog"])
    source = open_labelled(tmp_path / "here" / "labels.txt", CLASSES, [tmp_path / "set"])
    assert held(source, tmp_path) == {"here/a.jpg": {1, 2}, "set/b.jpg": {4}}


@pytest.mark.parametrize(
    ("file", "lines", "expected"),
    [
        ("l.csv", ["image,class", "a.jpg,wolf"], "line 2: unknown class 'wolf'; expected ids from 1 to 5"),
        ("l.csv", ["image,class", "a.jpg,6"], "unknown class '6'"),
        ("l.csv", ["image,bee,wolf", "a.jpg,0,1"], "unknown class 'wolf'"),
        ("l.csv", ["image,bee,eel", "a.jpg,0,2"], "line 2: expected 0 or 1 for each class, got '2'"),
        ("l.csv", ["image,bee,eel", "a.jpg,0"], "line 2: expected 3 cells"),
        ("l.csv", ["a.jpg,bee"], "expected the header 'image,class'"),
        ("l.csv", [], "expected the header"),
        ("l.csv", ["image,class"], "names no image"),
        ("l.csv", ["image,class", "b.jpg,bee"], r"line 2: no image 'b.jpg'; looked for .*/b with \.jpg, "),
        ("l.csv", ["image,class", "../a.jpg,bee"], "must stay inside"),
        ("l.txt", ["a wolf"], "line 1: unknown class 'wolf'"),
        ("l.txt", ["x/../../a bee"], "must stay inside"),
        ("l.txt", [], "names no image"),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, file: str, lines: list[str], expected: str) -> None:
    write_images(tmp_path, "a.jpg")
    write_text(tmp_path / file, lines)
    with pytest.raises(UserError, match=expected):
        open_labelled(tmp_path / file, CLASSES)


def test_absolute_paths_stay_inside_too(tmp_path: Path) -> None:
    write_images(tmp_path, "elsewhere/a.jpg")
    write_text(tmp_path / "set" / "l.csv", ["image,class", f"{tmp_path / 'elsewhere' / 'a.jpg'},bee"])
    with pytest.raises(UserError, match="no image"):
        open_labelled(tmp_path / "set" / "l.csv", CLASSES)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder or file"):
        open_labelled(tmp_path / "nowhere", CLASSES)
    (tmp_path / "wolf").mkdir()
    with pytest.raises(UserError, match="wolf: unknown class 'wolf'"):
        open_labelled(tmp_path, CLASSES)
    with pytest.raises(UserError, match="no images there"):
        open_negatives(tmp_path, CLASSES)


def test_names_are_paths_inside_the_folder(tmp_path: Path) -> None:
    write_images(tmp_path, "bee/1.jpg", "bee/1.v2.png", "eel/1.jpg", "eel/2.jpg", "eel/2.png")
    assert open_labelled(tmp_path, CLASSES).names == ["bee/1", "bee/1.v2", "eel/1", "eel/2.jpg", "eel/2.png"]
    assert open_negatives(tmp_path / "eel", CLASSES).names == ["1", "2.jpg", "2.png"]
    write_images(tmp_path, "set/JPEGImages/b.jpg", "set/own/c.jpg")
    write_text(tmp_path / "set" / "labels.txt", ["b bee", "own/c eel"])
    source = open_labelled(tmp_path / "set" / "labels.txt", CLASSES, [tmp_path / "set" / "JPEGImages"])
    assert source.names == ["b", "own/c"]


def test_saliency_maps_lie_in_their_folder_under_these_names(tmp_path: Path) -> None:
    write_images(tmp_path, "own/bee/1.jpg", "own/eel/1.jpg")
    source = open_labelled(tmp_path / "own", CLASSES)
    for number, name in enumerate(source.names):
        write_image(tmp_path / "maps" / f"{name}.png", np.full((4, 6), 7 + number))
    maps = Saliency(tmp_path / "maps", source.names)
    assert [maps.read(name, (6, 4)).getextrema() for name in source.names] == [(7, 7), (8, 8)]
    with pytest.raises(UserError, match="2 images named 'eel/1'"):
        Saliency(tmp_path / "maps", [*source.names, "eel/1"])


def test_negatives_hold_no_class(tmp_path: Path) -> None:
    write_images(tmp_path, "a.jpg", "bee/b.jpg")
    assert held(open_negatives(tmp_path, CLASSES), tmp_path) == {"a.jpg": set(), "bee/b.jpg": set()}

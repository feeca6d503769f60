"""What is exported can be opened again, and is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.data_sets import mask_of, write_labels, write_voc
from wilson.data.export import export
from wilson.data.sources.base import class_sets
from wilson.data.sources.synthetic import Synthetic
from wilson.data.sources.voc import VOCFolder
from wilson.errors import UserError
from wilson.pictures.palette import palette


def test_synthetic_data_survives_the_journey(tmp_path: Path) -> None:
    sources = {"train": Synthetic("train", 9), "val": Synthetic("val", 4)}
    export(sources, tmp_path / "out")
    for split, source in sources.items():
        again = VOCFolder(tmp_path / "out", split)
        assert again.classes == source.classes
        assert list(again.names) == list(source.names)
        assert class_sets(again) == class_sets(source)
        for index in range(len(source.names)):
            np.testing.assert_array_equal(again.mask(index), source.mask(index))
            error = np.asarray(again.image(index)).astype(float) - np.asarray(source.image(index))
            assert abs(error).mean() < 4, "no more than JPEG's loss at quality 95"


def test_masks_have_vocs_palette(tmp_path: Path) -> None:
    export({"val": Synthetic("val", 1)}, tmp_path)
    mask = Image.open(tmp_path / "SegmentationClass" / "val_00000.png")
    assert mask.mode == "P"
    colours = np.array(mask.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(colours, palette(256)[: len(colours)])
    np.testing.assert_array_equal(colours[:4], [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)])


def test_labels_stand_in_when_the_masks_are_taken_away(tmp_path: Path) -> None:
    source = Synthetic("step", 6)
    export({"train": source}, tmp_path)
    for mask in (tmp_path / "SegmentationClass").iterdir():
        mask.unlink()
    assert class_sets(VOCFolder(tmp_path)) == class_sets(source)


def test_folders_with_void_and_without_masks_are_exported_too(tmp_path: Path) -> None:
    write_voc(tmp_path / "in", {"sub/a": mask_of(0, 2, 255), "b": mask_of(0, 1)})
    (tmp_path / "in" / "SegmentationClass" / "b.png").unlink()
    write_labels(tmp_path / "in", ["b 1 5"])
    export({"train": VOCFolder(tmp_path / "in")}, tmp_path / "out")
    again = VOCFolder(tmp_path / "out")
    assert class_sets(again) == [frozenset({2}), frozenset({1, 5})]
    np.testing.assert_array_equal(again.mask(0), mask_of(0, 2, 255))
    assert again.mask(1) is None


def test_refuses_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("keep me")
    for out in (tmp_path, tmp_path / "note.txt"):
        with pytest.raises(UserError, match="expected a new or empty folder"):
            export({"val": Synthetic("val", 1)}, out)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_refuses_sources_that_do_not_go_together(tmp_path: Path) -> None:
    write_voc(tmp_path / "in", {"a": mask_of(0, 2)})
    folder = VOCFolder(tmp_path / "in")
    with pytest.raises(UserError, match="all of the same classes"):
        export({"train": folder, "val": Synthetic("val", 1)}, tmp_path / "out")
    with pytest.raises(UserError, match="2 images are named 'a'"):
        export({"train": folder, "val": folder}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export({"val": Synthetic("val", 1)}, tmp_path / "file" / "out")

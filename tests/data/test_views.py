"""Some images of a source, and what cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.data_sets import mask_of, write_image, write_voc
from wilson.data.sources.base import class_sets
from wilson.data.sources.synthetic import Synthetic
from wilson.data.sources.views import Chosen, usable, without
from wilson.data.sources.voc import VOCFolder
from wilson.errors import UserError

MASKS = {"a": mask_of(0, 1), "b": mask_of(0, 2), "c": mask_of(0, 3), "d": mask_of(4, 5)}


def test_chosen_images_are_those_of_the_source(tmp_path: Path) -> None:
    source = VOCFolder(write_voc(tmp_path, MASKS))
    chosen = Chosen(source, [3, 0])
    assert (list(chosen.names), chosen.left_out, chosen.classes) == (["d", "a"], 2, source.classes)
    assert class_sets(chosen) == [{4, 5}, {1}]
    np.testing.assert_array_equal(chosen.mask(0), MASKS["d"])
    assert chosen.image(1).tobytes() == source.image(0).tobytes()
    assert chosen.files(0) == source.files(3) and chosen.has_mask(0)


def test_what_cannot_be_used_is_left_out_and_named(tmp_path: Path) -> None:
    root = write_voc(tmp_path, MASKS)
    image, mask = root / "JPEGImages" / "b.jpg", root / "SegmentationClass" / "d.png"
    image.write_bytes(image.read_bytes()[:300])
    mask.write_bytes(b"no PNG")
    write_image(root / "SegmentationClass" / "a.png", mask_of(0, 1, size=(8, 13)))
    left, text = usable(VOCFolder(root), root)
    assert list(left.names) == ["c"]
    assert class_sets(left) == [{3}], "the masks that cannot be read are not asked for their classes"
    assert text.startswith(f"{root}: 3 of 4 images are left out, such as: image 'a' is 12x8 pixels, its mask 13x8")
    (root / "JPEGImages" / "c.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 4 images can be used"):
        usable(VOCFolder(root), root)


def test_nothing_is_left_out_of_whole_data(tmp_path: Path) -> None:
    for source in (VOCFolder(write_voc(tmp_path, MASKS)), Synthetic("val", 2)):
        assert usable(source, "here") == (source, "")


def test_without_leaves_a_class_out() -> None:
    source = Synthetic("step", 12)
    left = without(source, "zigzag")
    zigzag = source.classes.index("zigzag")
    assert 0 < len(left.names) < 12
    assert set(left.names) == {n for n, ids in zip(source.names, class_sets(source), strict=True) if zigzag not in ids}
    with pytest.raises(UserError, match="unknown class 'zebra'"):
        without(source, "zebra")

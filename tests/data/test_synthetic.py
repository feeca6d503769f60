"""The built-in data set is what its description says, image by image."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from wilson.data.opening import open_source
from wilson.data.sources.base import class_sets
from wilson.data.sources.synthetic import NEW, NEW_CLASSES, OLD, OLD_CLASSES, Synthetic
from wilson.data.tasks import Task, select
from wilson.errors import UserError

OLD_IDS, NEW_IDS = set(OLD.tolist()), set(NEW.tolist())


def pixels(source: Synthetic, index: int) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(source.image(index)), np.asarray(source.mask(index))


def test_images_derive_from_seed_split_and_index_alone() -> None:
    one, other = Synthetic("train", 30, seed=1), Synthetic("train", 90, seed=1)
    for index in (29, 0, 11):
        for a, b in zip(pixels(one, index), pixels(other, index), strict=True):
            np.testing.assert_array_equal(a, b)
    changed = [Synthetic("train", 30, seed=2), *(Synthetic(split, 30, seed=1) for split in ("base", "step", "val"))]
    first = pixels(one, 0)[0]
    assert all((pixels(source, 0)[0] != first).mean() > 0.5 for source in changed)


def test_images_are_kept_and_travel_to_workers() -> None:
    source = Synthetic("val", 3)
    before = pixels(source, 1)
    source.image(1).putpixel((0, 0), (1, 2, 3))
    copy = pickle.loads(pickle.dumps(source))
    for again in (pixels(source, 1), pixels(copy, 1)):
        np.testing.assert_array_equal(again[0], before[0])
        np.testing.assert_array_equal(again[1], before[1])


def test_class_sets_are_what_the_masks_hold() -> None:
    source = Synthetic("val", 40)
    for index, held in enumerate(class_sets(source)):
        assert held == set(np.unique(np.asarray(source.mask(index)))) - {0}
        assert held, "the foremost shape is never hidden"


def test_mask_lies_on_the_shapes_it_names() -> None:
    """A shape has two colours and a little noise: a mask that is off would take in a third."""
    source = Synthetic("val", 60)
    regions = 0
    for index in range(60):
        image, mask = pixels(source, index)
        for class_id in np.unique(mask[mask > 0]):
            colours = image[mask == class_id].astype(float)
            if len(colours) < 20:  # all but hidden: there may be one colour left
                continue
            centred = colours - colours.mean(0)
            along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
            first = along > (along.min() + along.max()) / 2
            for part in (colours[first], colours[~first]):
                assert part.std(0).max() < 12, f"image {index}, {source.classes[class_id]}"
                regions += 1
    assert regions > 150


@pytest.mark.parametrize("size", [32, 64, 150])
def test_size_changes_the_resolution_and_not_the_scene(size: int) -> None:
    source = Synthetic("val", 4, size=size)
    assert source.image(2).size == source.mask(2).size == (size, size)
    assert source.image(2).mode == "RGB"
    small = np.asarray(source.mask(2).resize((64, 64), 0))
    assert (small == np.asarray(Synthetic("val", 4).mask(2))).mean() > 0.95


def test_classes_are_five_old_and_three_new() -> None:
    assert Synthetic.classes == ("background", *OLD_CLASSES, *NEW_CLASSES)
    task = Task.parse("5-3", Synthetic.classes)
    assert set(task.new(0)) == OLD_IDS
    assert set(task.new(1)) == NEW_IDS


def test_splits_hold_their_classes() -> None:
    base, step, val = (class_sets(Synthetic(split, 200)) for split in ("base", "step", "val"))
    assert all(held <= OLD_IDS for held in base)
    assert all(1 <= len(held & NEW_IDS) <= 2 or held <= OLD_IDS for held in step)
    assert set().union(*base) == OLD_IDS
    assert set().union(*step) == set().union(*val) == OLD_IDS | NEW_IDS
    assert all(len(held) <= 3 for held in val)


def test_protocol_finds_both_steps_in_the_training_split() -> None:
    source = Synthetic("train", 700)
    held = class_sets(source)
    task = Task.parse("5-3", source.classes)
    base, step = (select(held, task, number, "disjoint") for number in (0, 1))
    assert len(base) == pytest.approx(400, abs=4)
    assert len(step) == pytest.approx(300, abs=4)
    assert all(held[index] <= OLD_IDS for index in base)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_old_and_new_classes_stand_together_in_half_of_the_second_step(seed: int) -> None:
    source = Synthetic("train", 700, seed=seed)
    held = class_sets(source)
    step = select(held, Task.parse("5-3", source.classes), 1, "disjoint")
    together = sum(bool(held[index] & OLD_IDS) for index in step)
    assert together >= len(step) / 2


def test_no_class_can_be_told_by_colour() -> None:
    """Neither by the mean nor by the spread of its colours: nearest class mean, learnt on half of the images."""
    source = Synthetic("val", 1000)
    features, ids = [], []
    for index in range(1000):
        image, mask = pixels(source, index)
        for class_id in np.unique(mask[mask > 0]):
            region = image[mask == class_id].astype(float)
            features.append([*region.mean(0), *region.std(0)])
            ids.append(class_id)
    x, y = np.array(features), np.array(ids)
    half = len(y) // 2
    means = np.stack([x[:half][y[:half] == class_id].mean(0) for class_id in range(1, 9)])
    spread = x[:half].std(0)
    distance = (((x[half:, None] - means) / spread) ** 2).sum(-1)
    accuracy = (distance.argmin(1) + 1 == y[half:]).mean()
    assert accuracy < 0.25, f"chance is 0.125, a class told by its colour would be 1; got {accuracy:.3f}"


def test_textures_differ() -> None:
    """What is left to tell classes by: where a region of the same colours changes along x, y and the diagonals."""
    source = Synthetic("val", 300)
    changes: dict[int, list[list[float]]] = {}
    for index in range(300):
        image, mask = pixels(source, index)
        grey = image.astype(float).mean(-1)
        for class_id in np.unique(mask[mask > 0]):
            inside = mask == class_id
            row = []
            for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
                moved = np.roll(grey, (-dy, -dx), (0, 1))
                both = inside & np.roll(inside, (-dy, -dx), (0, 1))
                row.append(abs(grey - moved)[both].mean() if both.any() else 0.0)
            if sum(row) > 0:
                changes.setdefault(class_id, []).append([value / sum(row) for value in row])
    shares = {name: np.mean(changes[class_id], 0) for class_id, name in enumerate(source.classes) if class_id}
    spread = {name: np.std(changes[class_id], 0) for class_id, name in enumerate(source.classes) if class_id}
    assert shares["vertical stripes"][1] < 0.1, "vertical stripes do not change downwards"
    assert shares["horizontal stripes"][0] < 0.15
    assert min(spread["diagonal stripes"][2:]) > 0.15, "diagonal stripes change along one diagonal, not the other"
    assert max(spread["zigzag"]) < 0.06, "a zigzag runs both ways"
    for name in ("checkers", "rings", "dots", "mosaic"):
        assert abs(shares[name][0] - shares[name][1]) < 0.03, f"{name} change as much along x as along y"


def test_opened_shares() -> None:
    assert len(open_source("synthetic", "train").names) == 2100
    assert open_source("synthetic", "val", images=5, size=32, seed=4).image(0).size == (32, 32)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"split": "test"}, "expected base, step, train, val, got 'test'"),
        ({"images": 0}, "images: expected at least 1, got 0"),
        ({"size": 16}, "size: expected at least 32, got 16"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Synthetic(**{"split": "val", "images": 1, **arguments})

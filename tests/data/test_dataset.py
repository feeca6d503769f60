"""A step sees its images, its labels and nothing else, and the same ones in every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tests.support.data_sets import CLASSES, mask_of, write_image, write_labels, write_voc
from wilson.data.dataset import EpochSampler, MixedIn, StepDataset
from wilson.data.sources.base import class_sets
from wilson.data.sources.labelled import open_negatives
from wilson.data.sources.synthetic import Synthetic
from wilson.data.sources.voc import VOCFolder
from wilson.data.tasks import Task, select
from wilson.data.transforms import CentreCrop, TrainingCrop
from wilson.errors import UserError

TASK = Task.parse("4,2/1,5", CLASSES)
# Rows of 8 pixels: void, a class of no step (3), classes of both steps.
MASKS = {"a": mask_of(0, 4, 2, 255), "b": mask_of(0, 1, 3, 4), "c": mask_of(5, 1), "d": mask_of(0, 3)}


def step_dataset(source: Any, indices: Sequence[int], step: int = 1, **options: Any) -> StepDataset:
    options = {"dense": True, "seed": 3, "task": TASK, "transform": CentreCrop(8), **options}
    return StepDataset(source, indices, step=step, **options)


@pytest.fixture
def source(tmp_path: Path) -> VOCFolder:
    return VOCFolder(write_voc(tmp_path, MASKS))


def test_sample_has_documented_shapes_and_types(source: VOCFolder) -> None:
    sample = step_dataset(source, [2])[0]
    assert set(sample) == {"image", "mask", "labels", "name"}
    assert (sample["image"].shape, sample["image"].dtype) == ((3, 8, 8), torch.uint8)
    assert (sample["mask"].shape, sample["mask"].dtype) == ((8, 8), torch.int64)
    assert (sample["labels"].shape, sample["labels"].dtype) == ((4,), torch.float32)
    assert sample["name"] == "c"


@pytest.mark.parametrize(
    ("step", "ignore", "rows"),
    [
        (0, None, {"a": [0, 1, 2, 0], "b": [0, 0, 0, 1], "c": [0, 0]}),
        (0, 255, {"a": [0, 1, 2, 255], "b": [0, 0, 0, 1], "c": [0, 0]}),
        (1, 255, {"a": [0, 1, 2, 255], "b": [0, 3, 0, 1], "c": [4, 3]}),
    ],
)
def test_masks_hold_output_channels(
    source: VOCFolder, step: int, ignore: int | None, rows: dict[str, list[int]]
) -> None:
    dataset = step_dataset(source, [0, 1, 2], step, ignore=ignore)
    for sample in (dataset[position] for position in range(3)):
        expected = torch.tensor(rows[sample["name"]]).repeat_interleave(8 // len(rows[sample["name"]]))
        torch.testing.assert_close(sample["mask"], expected[:, None].expand(8, 8))


def test_labels_tell_the_new_classes_only_unless_asked(source: VOCFolder) -> None:
    # Channels of step 1, background left out: 4, 2 (old), 1, 5 (new).
    assert step_dataset(source, [1, 2, 0]).labels.tolist() == [[0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    all_labels = step_dataset(source, [1, 2, 0], all_labels=True).labels
    assert all_labels.tolist() == [[1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]]
    assert step_dataset(source, [0, 1, 3], 0).labels.tolist() == [[1, 1], [1, 0], [0, 0]]


def test_incremental_step_needs_no_masks(tmp_path: Path) -> None:
    write_voc(tmp_path, MASKS, with_masks=False)
    write_labels(tmp_path, ["a 4 2", "b 1 3 4", "c 5 1", "d 3"])
    assert not (tmp_path / "SegmentationClass").exists()
    source = VOCFolder(tmp_path)
    dataset = step_dataset(source, select(class_sets(source), TASK, 1, "overlap"), dense=False)
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert set(batch) == {"image", "labels", "name"}
    assert batch["name"] == ["b", "c"]
    assert batch["labels"].tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]
    with pytest.raises(UserError, match=r"step 0: needs masks, but image 'a' has none \(2 of 2"):
        step_dataset(source, [0, 1], 0)


def test_incremental_step_opens_no_mask_that_is_there(source: VOCFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = step_dataset(source, [0], dense=False)
    monkeypatch.setattr(source, "mask", lambda index: pytest.fail("opened a mask"))
    assert "mask" not in dataset[0]


def test_no_images_is_an_error(source: VOCFolder) -> None:
    with pytest.raises(UserError, match=r"step 1: no image .*holds its classes \(ant, eel\)"):
        step_dataset(source, [])


def test_mask_of_another_size_is_an_error(source: VOCFolder) -> None:
    write_image(source.root / "SegmentationClass" / "a.png", mask_of(0, 4, size=(12, 8)))
    with pytest.raises(UserError, match=r"image 'a' is 12x8 pixels, its mask 8x12"):
        step_dataset(source, [0])[0]


TRAIN = TrainingCrop(32)
SYNTHETIC = Synthetic("train", 12)


def synthetic_dataset(indices: Sequence[int] = range(12), seed: int = 3) -> StepDataset:
    task = Task.parse("5-3", Synthetic.classes)
    return step_dataset(SYNTHETIC, indices, task=task, transform=TRAIN, seed=seed)


def epoch_of(dataset: StepDataset, epoch: int, workers: int = 0, batch: int = 4) -> dict[str, dict[str, Any]]:
    """The samples of an epoch by name, as a loader gives them."""
    sampler = EpochSampler(len(dataset), seed=3)
    sampler.set_epoch(epoch)
    loader = DataLoader(dataset, batch_size=batch, sampler=sampler, num_workers=workers)
    return {
        name: {key: values[i] for key, values in samples.items()}
        for samples in loader
        for i, name in enumerate(samples["name"])
    }


def assert_same(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> None:
    assert list(one) == list(other)
    for name in one:
        assert torch.equal(one[name]["image"], other[name]["image"])
        assert torch.equal(one[name]["mask"], other[name]["mask"])


def test_samples_do_not_depend_on_workers_batch_or_the_global_generator() -> None:
    once = epoch_of(synthetic_dataset(), epoch=5)
    torch.manual_seed(99)
    assert_same(once, epoch_of(synthetic_dataset(), epoch=5, workers=2, batch=3))


def test_samples_do_not_depend_on_the_other_images_of_the_step() -> None:
    alone = synthetic_dataset([7])[4, 0]
    among = synthetic_dataset([2, 5, 7])[4, 2]
    assert torch.equal(alone["image"], among["image"])


def test_samples_change_with_epoch_and_seed() -> None:
    samples = [
        synthetic_dataset()[0, 1],
        synthetic_dataset()[1, 1],
        synthetic_dataset(seed=4)[0, 1],
    ]
    images = [sample["image"] for sample in samples]
    assert not any(torch.equal(images[i], images[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(synthetic_dataset()[1]["image"], images[0]), "a position alone stands for epoch 0"


def test_global_generator_goes_on_as_if_nothing_was_drawn() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    synthetic_dataset()[0, 0]
    list(EpochSampler(10, seed=0))
    assert torch.equal(torch.rand(3), expected)


def test_sampler_yields_every_position_once_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(50, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {number for number, _ in keys} == {epoch}
        orders.append([position for _, position in keys])
    assert len(sampler) == 50
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] == orders[2] != orders[1]
    assert [position for _, position in EpochSampler(50, seed=2)] != orders[0]


def test_an_epoch_of_several_passes_is_as_many_epochs_of_one() -> None:
    once, thrice = EpochSampler(5, seed=1), EpochSampler(5, seed=1, passes=3)
    expected = []
    for epoch in (3, 4, 5):
        once.set_epoch(epoch)
        expected += list(once)
    thrice.set_epoch(1)
    assert list(thrice) == expected and len(thrice) == 15


def test_passes_fill_batches_together_where_others_are_mixed_in() -> None:
    sampler = EpochSampler(5, seed=1, batch=10, mixed_in=[MixedIn(2, 4)], passes=4)
    assert len(EpochSampler(5, seed=1, batch=10, mixed_in=[MixedIn(2, 4)])) == 0
    keys = list(sampler)
    batches = [keys[start : start + 10] for start in range(0, len(keys), 10)]
    assert len(keys) == len(sampler) == 20  # 20 of its own make two batches of 8
    assert all([position >= 5 for _, position in batch] == [False] * 8 + [True] * 2 for batch in batches)
    own = [key for batch in batches for key in batch[:8]]
    assert len(set(own)) == 16 and all(sorted(p for n, p in own if n == number) == [0, 1, 2, 3, 4] for number in (0, 1))
    assert [batch[8][0] for batch in batches] == [batch[0][0] for batch in batches] == [0, 1]
    assert sorted(position for batch in batches for _, position in batch[8:]) == [5, 6, 7, 8]


def test_real_and_synthetic_data_go_through_the_same_classes(source: VOCFolder) -> None:
    keys = [Counter(step_dataset(source, [0])[0].keys()), Counter(synthetic_dataset()[0].keys())]
    assert keys[0] == keys[1]


def keys(sampler: EpochSampler, epoch: int, batch: int) -> list[list[int]]:
    """The positions of an epoch in batches."""
    sampler.set_epoch(epoch)
    positions = [position for _, position in sampler]
    assert len(positions) == len(sampler) and len(positions) % batch == 0
    return [positions[start : start + batch] for start in range(0, len(positions), batch)]


def test_negatives_stand_in_the_last_places_of_every_batch() -> None:
    sampler = EpochSampler(20, seed=1, batch=8, mixed_in=[MixedIn(2, 5)])
    batches = keys(sampler, 0, 8)
    assert len(batches) == 3, "20 images in batches with 6 of them"
    own = [position for batch in batches for position in batch[:6]]
    assert len(set(own)) == 18 and set(own) < set(range(20))
    mixed_in = [position for batch in batches for position in batch[6:]]
    assert set(mixed_in[:5]) == set(range(20, 25)), "each comes before one comes again"
    assert keys(sampler, 0, 8) == batches != keys(sampler, 1, 8)
    assert keys(EpochSampler(20, seed=2, batch=8, mixed_in=[MixedIn(2, 5)]), 0, 8) != batches
    assert keys(EpochSampler(5, seed=1, batch=8, mixed_in=[MixedIn(2, 5)]), 0, 8) == []


def test_order_without_negatives_is_as_it_was() -> None:
    assert [position for _, position in EpochSampler(6, seed=0)] == [1, 4, 5, 3, 2, 0]


def test_negatives_have_no_labels_and_numbers_of_their_own(source: VOCFolder, tmp_path: Path) -> None:
    for name in "xy":
        write_image(tmp_path / "negatives" / f"{name}.jpg", torch.arange(60 * 50 * 3).view(60, 50, 3) % 251)
    options: dict[str, Any] = {
        "dense": False,
        "transform": TRAIN,
        "negatives": open_negatives(tmp_path / "negatives", CLASSES),
    }
    dataset = step_dataset(source, [1, 2], negative_share=0.5, **options)
    assert len(dataset) == 2, "the step's own images"
    sampler = dataset.sampler(2)
    (batch,) = (DataLoader(dataset, 2, sampler=sampler, drop_last=True).__iter__().__next__(),)
    assert batch["labels"][0].sum() > 0 and batch["labels"][1].sum() == 0
    assert batch["name"][1] in ("x", "y")
    one, again, later = dataset[0, 2], dataset[0, 2], dataset[1, 2]
    assert torch.equal(one["image"], again["image"]) and not torch.equal(one["image"], later["image"])
    assert one["image"].shape == (3, 32, 32) and one["labels"].shape == dataset[0, 0]["labels"].shape
    for share in (0.1, 1.0):
        with pytest.raises(UserError, match=f"a share of {share} negatives makes"):
            step_dataset(source, [1, 2], negative_share=share, **options).sampler(4)

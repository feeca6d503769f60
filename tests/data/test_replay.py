"""Replayed images: which are drawn, what their samples carry, and where they are in a batch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tests.support.data_sets import CLASSES, mask_of, write_image, write_labels, write_voc
from wilson.data.dataset import StepDataset
from wilson.data.loading import to_batch
from wilson.data.replay import Replay, balanced
from wilson.data.sources.labelled import open_negatives
from wilson.data.sources.voc import VOCFolder
from wilson.data.tasks import Task
from wilson.data.transforms import CentreCrop, Normalization
from wilson.errors import UserError

TASK = Task.parse("4,2/1,5", CLASSES)
MASKS = {"a": mask_of(0, 4, 2, 255), "b": mask_of(0, 1, 3, 4), "c": mask_of(5, 1), "d": mask_of(0, 2)}


@pytest.fixture
def source(tmp_path: Path) -> VOCFolder:
    return VOCFolder(write_voc(tmp_path / "voc", MASKS))


def replaying(source: VOCFolder, images: int, share: float = 0.25, **options: Any) -> StepDataset:
    replay = Replay.of(source, TASK, "overlap", images, 0, share)
    options = {"dense": False, "seed": 3, "transform": CentreCrop(8), **options}
    return StepDataset(source, [1, 2], TASK, 1, replay=replay, **options)


def test_classes_take_turns() -> None:
    held = [frozenset({1})] * 10 + [frozenset({2})] * 3 + [frozenset({1, 3})]
    chosen = balanced(held, range(14), (1, 2, 3), 6, seed=0)
    shown = Counter(class_id for index in chosen for class_id in held[index])
    assert len(set(chosen)) == 6 and shown[2] >= 2 and shown[3] == 1
    assert balanced(held, range(14), (1, 2, 3), 6, seed=0) == chosen != balanced(held, range(14), (1, 2, 3), 6, seed=1)
    assert sorted(balanced(held, range(14), (1, 2, 3), 14, seed=0)) == list(range(14))


def test_samples_tell_which_are_replayed_with_the_masks_of_the_base_step(source: VOCFolder) -> None:
    dataset = replaying(source, 3)
    own, replayed = dataset[0], [dataset[0, 2 + position] for position in range(3)]
    assert not own["replayed"] and bool((own["mask"] == 255).all()) and own["labels"].sum() > 0
    assert [sample["name"] for sample in replayed] == ["a", "b", "d"]
    rows = ([0, 1, 2, 0], [0, 0, 0, 1], [0, 2])  # classes of the later step and 255 are background
    for sample, row in zip(replayed, rows, strict=True):
        assert sample["replayed"] and not sample["labels"].any()
        expected = torch.tensor(row).repeat_interleave(8 // len(row))
        torch.testing.assert_close(sample["mask"], expected[:, None].expand(8, 8))
    assert "replayed" not in StepDataset(source, [1], TASK, 1, CentreCrop(8), dense=False, seed=0)[0]


def test_replayed_images_come_last_in_every_batch(source: VOCFolder, tmp_path: Path) -> None:
    write_image(tmp_path / "none" / "x.jpg", torch.zeros(9, 9, 3, dtype=torch.int64))
    negatives = open_negatives(tmp_path / "none", CLASSES)
    dataset = replaying(source, 2, share=0.25, negatives=negatives, negative_share=0.25)
    assert dataset.places(4) == {"negatives": 1, "replayed": 1}
    (loaded,) = DataLoader(dataset, 4, sampler=dataset.sampler(4))
    assert loaded["replayed"].tolist() == [False, False, False, True] and loaded["name"][2] == "x"
    batch = to_batch(loaded, torch.device("cpu"), Normalization((0.5,) * 3, (0.5,) * 3))
    assert batch["own"] == 3 and "replayed" not in batch


def test_refused(source: VOCFolder, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="replay 4: the base step has 3 images"):
        Replay.of(source, TASK, "overlap", 4, 0, 0.25)
    with pytest.raises(UserError, match=r"0\.1 replayed images makes 0 of a batch of 4.*--data.replay-share"):
        replaying(source, 2, share=0.1).sampler(4)
    write_voc(tmp_path / "bare", MASKS, with_masks=False)
    write_labels(tmp_path / "bare", ["a 4 2", "b 1 3 4", "c 5 1", "d 2"])
    with pytest.raises(UserError, match="image 'a' of the base step has no mask"):
        Replay.of(VOCFolder(tmp_path / "bare"), TASK, "overlap", 2, 0, 0.25)

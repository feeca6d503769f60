"""Batches: normalised on the device, to the bits that torchvision makes of single images, and shared out."""

from __future__ import annotations

import signal
import sys
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F

from wilson import distributed
from wilson.data.dataset import EpochSampler, StepDataset
from wilson.data.loading import ShareOfBatches, _serve_quietly, batches, make_loader, to_batch
from wilson.data.sources.synthetic import Synthetic
from wilson.data.tasks import Task
from wilson.data.transforms import Normalization, TrainingCrop

CPU = torch.device("cpu")
NORMALIZATION = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def synthetic(count: int = 10) -> StepDataset:
    source = Synthetic("train", count)
    task = Task.parse("5-3", source.classes)
    return StepDataset(source, range(count), task, 0, TrainingCrop(32), dense=True, seed=3)


def test_images_are_normalised_as_torchvision_normalises_each() -> None:
    """Bit for bit, and what is shown of them is the same in 0..1."""
    dataset = synthetic()
    found = list(batches(make_loader(dataset, 4, 0, CPU), CPU, NORMALIZATION))
    assert [len(batch["image"]) for batch in found] == [4, 4, 2]
    images, rgb = (torch.cat([batch[key] for batch in found]) for key in ("image", "rgb"))
    for position in range(len(dataset)):
        sample = dataset[position]
        unit = F.to_dtype(sample["image"], torch.float32, scale=True)
        assert torch.equal(rgb[position], unit)
        assert torch.equal(images[position], F.normalize(unit, list(NORMALIZATION.mean), list(NORMALIZATION.std)))


def test_a_known_colour() -> None:
    pixels = torch.tensor([255, 51, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    batch = to_batch({"image": pixels}, CPU, NORMALIZATION)
    torch.testing.assert_close(batch["rgb"].flatten(), torch.tensor([1, 0.2, 0]))
    torch.testing.assert_close(batch["image"].flatten(), torch.tensor([0.5 / 0.2, -0.2 / 0.25, -1.0]))


def test_tensors_go_to_the_device_and_names_stay_behind() -> None:
    (loaded,) = DataLoader(synthetic(3), batch_size=3)
    assert loaded["image"].dtype == torch.uint8 and loaded["name"]
    batch: dict[str, Any] = {**to_batch(loaded, torch.device("meta"), NORMALIZATION)}
    assert set(batch) == {"image", "rgb", "labels", "mask"}
    assert {tensor.device.type for tensor in batch.values()} == {"meta"}
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert loaded["image"].device == CPU, "what was loaded is left as it was"


@pytest.mark.parametrize(("processes", "parts"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_shares_make_up_the_batches(monkeypatch: pytest.MonkeyPatch, processes: int, parts: int) -> None:
    """Whatever the number of processes and parts: the same batches, each image once, the incomplete one dropped."""
    order = list(EpochSampler(20, seed=1))
    monkeypatch.setattr(distributed, "processes", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        sampler = ShareOfBatches(EpochSampler(20, seed=1), 8, parts)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler) == 2 * parts and all(shares[-1])
    for number in range(2):
        mine = [share[number * parts : (number + 1) * parts] for share in shares]
        found = [key for part in range(parts) for share in mine for key in share[part]]
        assert sorted(found) == sorted(order[8 * number : 8 * number + 8])


def test_a_worker_is_quiet_about_a_process_that_has_gone(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: shown.append(kind))
    before = signal.getsignal(signal.SIGINT)
    try:
        _serve_quietly(0)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        for error in (BrokenPipeError(), ConnectionResetError(), ValueError()):
            sys.excepthook(type(error), error, None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert shown == [ValueError]

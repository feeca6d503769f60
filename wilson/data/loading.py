"""Batches: what methods see of images, which images each process takes, and how they are loaded."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from wilson import distributed
from wilson.data.dataset import EpochSampler, StepDataset
from wilson.data.transforms import Normalization, unit_range


class Batch(TypedDict, total=False):
    """A batch as a method sees it."""

    image: Tensor  # (B, 3, H, W), normalised
    rgb: Tensor  # (B, 3, H, W), the same in [0, 1]
    labels: Tensor  # (B, C-1), image-level labels without background
    mask: Tensor  # (B, H, W), output channels, 255 to leave out; only with dense labels, and of replayed images
    own: int  # images of the step, the first ones; those behind it are replayed. Only where images are replayed
    saliency: Tensor  # (B, H, W), in [0, 1]; only where a folder of saliency maps is given
    regions: Tensor  # (B, H, W), ids, 0 for none; only where a folder of them is given
    prior: Tensor  # (B, N, h, w), in [0, 1], maps of the N new classes; only where a folder of them is given


def to_batch(loaded: dict[str, Any], device: torch.device, normalization: Normalization) -> Batch:
    """Move a loaded batch to the device and normalise its images there."""
    replayed = loaded.pop("replayed", None)  # is counted here, without waiting for the device
    there = {key: value.to(device, non_blocking=True) for key, value in loaded.items() if isinstance(value, Tensor)}
    rgb = unit_range(there.pop("image")).contiguous(memory_format=torch.channels_last)
    if "prior" in there:
        there["prior"] = unit_range(there["prior"])
    batch: Batch = {"image": normalization(rgb), "rgb": rgb, **there}  # type: ignore[typeddict-item]
    return batch if replayed is None else {**batch, "own": int((~replayed).sum())}


def batches(loader: Iterable[dict[str, Any]], device: torch.device, normalization: Normalization) -> Iterator[Batch]:
    """The batches of a loader, on the device."""
    return (to_batch(loaded, device, normalization) for loaded in loader)


class ShareOfBatches(Sampler[list[Any]]):
    """This process's share of every batch, divided into parts; an incomplete last batch is dropped.

    The order and the batches do not depend on the number of processes. Each part holds at least one image.

    Args:
        sampler: the global order.
        batch: images in a global batch, at least processes x parts.
        parts: number of parts; a process computes them one after the other.
    """

    def __init__(self, sampler: EpochSampler, batch: int, parts: int) -> None:
        self.sampler, self.batch, self.parts = sampler, batch, parts

    def __len__(self) -> int:
        return len(self.sampler) // self.batch * self.parts

    def __iter__(self) -> Iterator[list[Any]]:
        order, processes = list(self.sampler), distributed.processes()
        for start in range(0, len(order) - self.batch + 1, self.batch):
            for part in range(self.parts):
                where = distributed.part(self.batch, self.parts * processes, part * processes + distributed.rank())
                yield order[start : start + self.batch][where]


def make_loader(
    dataset: StepDataset,
    batch: int,
    workers: int,
    device: torch.device,
    sampler: EpochSampler | None = None,
    parts: int = 1,
) -> DataLoader[dict[str, Any]]:
    """Load this process's share of a data set.

    Args:
        dataset: the images.
        batch: images in a global batch; without a sampler, in a batch of this process.
        workers: processes that load images; 0 loads in this process.
        device: runs the model; for a GPU, batches are loaded into pinned memory.
        sampler: the global order of an epoch; None for every image once, in the order of the data set.
        parts: number of parts of this process's share of a batch, see :class:`ShareOfBatches`.
    """
    order = (
        {"batch_size": batch, "sampler": distributed.share(len(dataset))}
        if sampler is None
        else {"batch_sampler": ShareOfBatches(sampler, batch, parts)}
    )
    return DataLoader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=_serve_quietly,
        generator=torch.Generator(),  # the global random numbers are for dropout; samples draw their own
        **order,
    )


def _serve_quietly(_: int) -> None:
    """Let Ctrl-C, which a terminal sends to all processes, end a worker through the process that it works for.

    The thread that hands over images may find that process gone; its traceback would say nothing to anybody.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    show = sys.excepthook

    def show_others(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError):
            show(kind, error, trace)

    sys.excepthook = show_others

"""One step's view of a data set, and the order of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from wilson.data.protocols import Task
from wilson.data.sources import ImageSource
from wilson.data.transforms import Transform
from wilson.errors import UserError


class StepDataset(Dataset[dict[str, Any]]):
    """Images of one step, with the labels the step may see.

    Random numbers of the transform derive from (seed, epoch, image) alone, so a sample is the same for any number of
    workers and in any batch; the global generator is left as it was.

    Args:
        source: the data set.
        indices: which images of it.
        task: the task.
        step: step whose classes and channels are meant.
        transform: from image and mask to tensors.
        dense: whether samples carry masks; without, no mask is opened.
        seed: seed of the random numbers, at least 0.
        all_labels: whether `labels` tells the old classes too.
        ignore: what mask id 255 becomes: None for background, as in training, or a label to leave out, as in testing.

    Raises:
        UserError: no image, or `dense` and an image has no mask.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: Sequence[int],
        task: Task,
        step: int,
        transform: Transform,
        *,
        dense: bool,
        seed: int,
        all_labels: bool = False,
        ignore: int | None = None,
    ) -> None:
        if not indices:
            raise UserError(
                f"task '{task.name}', step {step}: no image of the data set holds its classes "
                f"({', '.join(task.classes[class_id] for class_id in task.new(step))}); "
                "choose other classes, or the other protocol"
            )
        unmasked = [source.names[index] for index in indices if not source.has_mask(index)] if dense else []
        if unmasked:
            raise UserError(
                f"task '{task.name}', step {step}: needs masks, but image '{unmasked[0]}' has none "
                f"({len(unmasked)} of {len(indices)} have none); add them, or list only images with masks"
            )
        self.source, self.indices, self.transform, self.dense, self.seed = source, list(indices), transform, dense, seed
        self.channels = task.channels(step, ignore=ignore)
        told = task.seen(step)[1:] if all_labels else task.new(step)
        # Here and not in the workers, each of which would scan the masks anew.
        self.labels = torch.zeros(len(indices), len(task.seen(step)) - 1)
        for row, index in zip(self.labels, indices, strict=True):
            row[self.channels[sorted(source.class_ids(index).intersection(told))] - 1] = 1

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One sample.

        Args:
            key: (epoch, position), or a position alone, which stands for epoch 0.

        Returns:
            image: normalised, float32 (3, H, W).
            mask: output channels, int64 (H, W); only if `dense`.
            labels: 1 for a class in the image, else 0; float32 (C - 1,), background left out.
            name: the image's name.
        """
        epoch, position = key if isinstance(key, tuple) else (0, key)
        index = self.indices[position]
        name = self.source.names[index]
        image, mask = self.source.image(index), self.source.mask(index) if self.dense else None
        if mask is not None and mask.size != image.size:
            sizes = "{}x{} pixels, its mask {}x{}".format(*image.size, *mask.size)
            raise UserError(f"image '{name}' is {sizes}; they must be of one size, pixel on pixel")
        with random_numbers_from(self.seed, epoch, index):
            pixels, ids = self.transform(image, mask)
        sample = {"image": pixels, "labels": self.labels[position], "name": name}
        return sample if ids is None else {**sample, "mask": self.channels[ids.long()]}


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, position): every position once, in an order that derives from (seed, epoch) alone.

    Args:
        length: number of positions.
        seed: seed of the order, at least 0.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed, self.epoch = length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        with random_numbers_from(self.seed, self.epoch):
            order = torch.randperm(self.length).tolist()
        return iter([(self.epoch, position) for position in order])


@contextmanager
def random_numbers_from(*key: int) -> Iterator[None]:
    """Torch's CPU random numbers inside derive from `key` alone; afterwards they go on as if nothing had been drawn."""
    state = torch.get_rng_state()
    # Not torch.manual_seed, which would seed the GPUs as well.
    torch.default_generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
    try:
        yield
    finally:
        torch.set_rng_state(state)

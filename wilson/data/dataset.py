"""One step's view of a data set, and the order of an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from wilson.config.masks import BACKGROUND, VOID
from wilson.data.replay import Replay
from wilson.data.scan import mismatch
from wilson.data.sources.base import ImageSource
from wilson.data.sources.prior_maps import PriorMaps
from wilson.data.sources.regions import Regions
from wilson.data.sources.saliency import Saliency
from wilson.data.tasks import Task
from wilson.data.transforms import TrainingCrop, Transform
from wilson.errors import UserError


class StepDataset(Dataset[dict[str, Any]]):
    """The images of one step, with the labels that the step may see.

    The transform's random numbers derive from (seed, epoch, image) alone, so a sample is the same for any number of
    workers and in any batch. The global generator keeps its state.

    Args:
        source: the data set.
        indices: positions of the step's images in it, at least one.
        task: the task.
        step: the step; it decides on classes and output channels.
        transform: turns image and mask into tensors.
        dense: whether samples carry masks; if not, no mask is opened.
        seed: of the random numbers, at least 0.
        all_labels: whether `labels` tells the old classes, too.
        old_masks: whether masks tell the old classes, too; if not, these are background.
        ignore: what mask id 255 becomes: None for background, as in training, or a label that is left out, as in
            testing and, for crowds, in training.
        negatives: images whose labels are all 0. `sampler` mixes them into the batches. Their positions follow those of
            the step's own images, and `len` does not count them.
        negative_share: share of the negatives in each batch, 0..1.
        saliency: folder of saliency maps; samples then carry a map, too.
        prior: folder of prior maps; samples then carry maps of the step's classes. The negatives, which show none of
            them, need no files. The transform must be a `TrainingCrop`.
        regions: folder of regions; samples then carry ids, 0 for negatives and replayed images, which need no files.
        replay: images of the base step, which `sampler` mixes in with their masks, after the negatives.

    Attributes:
        labels: 1 for a class that an image holds and the step may know, else 0; float32 (N, C - 1), without background.
        absent: names of the step's classes that no image holds.

    Raises:
        UserError: there is no image, `dense` is set and an image has no mask, or an image has no saliency map, file
            of prior maps or regions.
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
        old_masks: bool = True,
        ignore: int | None = None,
        negatives: ImageSource | None = None,
        negative_share: float = 0.25,
        saliency: Path | None = None,
        prior: Path | None = None,
        regions: Path | None = None,
        replay: Replay | None = None,
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
        self.negatives, self.negative_share, self.replay = negatives, negative_share, replay
        own = [source.names[index] for index in indices]
        shown = own + list(negatives.names if negatives else [])
        self.saliency = None if saliency is None else Saliency(saliency, shown)
        new = [task.classes[class_id] for class_id in task.new(step)]
        self.prior = None if prior is None else PriorMaps(prior, own, new)
        self.regions = None if regions is None else Regions(regions, own)
        self.channels = task.channels(step, ignore=ignore)
        self.mask_channels = self.channels.clone()
        if not old_masks and step > 0:
            self.mask_channels[list(task.seen(step - 1))] = BACKGROUND
        told = task.seen(step)[1:] if all_labels else task.new(step)
        # Computed here, because in the workers each of them would scan the masks again.
        self.labels = torch.zeros(len(indices), len(task.seen(step)) - 1)
        for row, index in zip(self.labels, indices, strict=True):
            row[self.channels[sorted(source.class_ids(index).intersection(told))] - 1] = 1

        self.absent = [
            task.classes[class_id]
            for class_id in task.new(step)
            if not self.labels[:, self.channels[class_id] - 1].any()
        ]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """Load one sample.

        Args:
            key: (epoch, position), or a position alone, which means epoch 0; with several passes an epoch,
                (pass, position).

        Returns:
            image: RGB, uint8 (3, H, W).
            mask: output channels, int64 (H, W); only if `dense` or if images are replayed.
            labels: 1 for a class in the image, else 0; float32 (C - 1,), without background.
            replayed: whether the image is one of the base step, with its mask, where the mask of the others is all 255;
                only if there are such images.
            saliency: float32 (H, W) in [0, 1]; only if there is a folder of them.
            prior: maps of the step's classes, uint8 (N, h, w); only if there is a folder of them.
            regions: ids, int32 (H, W); only if there is a folder of them.
            name: name of the image.
        """
        epoch, position = key if isinstance(key, tuple) else (0, key)
        if position < len(self):
            sample = self._own(epoch, position)
        elif (extra := position - len(self)) < self._negatives:
            sample = self._negative(epoch, extra)
        else:
            return self._replayed(epoch, extra - self._negatives)
        if self.replay is not None:  # the samples of a batch have the same parts
            nothing = torch.full(sample["image"].shape[1:], VOID, dtype=torch.int64)
            sample |= {"mask": nothing, "replayed": torch.tensor(False)}
        return sample

    @property
    def _negatives(self) -> int:
        return len(self.negatives.names) if self.negatives else 0

    def _own(self, epoch: int, position: int) -> dict[str, Any]:
        index = self.indices[position]
        name = self.source.names[index]
        image, mask = opened(self.source, index) if self.dense else (self.source.image(index), None)
        pixels, ids, more = self._cut(image, mask, name, self.source.files(index), self.seed, epoch, index)
        if self.prior is not None:
            more["prior"] = self._cut_maps(image, self.prior.read(name, image.size), self.seed, epoch, index)
        if self.regions is not None:
            ids_of = self.regions.read(name, image.size, next(iter(self.source.files(index)), None))
            more["regions"] = self._cut_beside(image, ids_of, self.seed, epoch, index)
        sample = {"image": pixels, "labels": self.labels[position], "name": name, **more}
        return sample if ids is None else {**sample, "mask": self.mask_channels[ids.long()]}

    def _negative(self, epoch: int, index: int) -> dict[str, Any]:
        assert self.negatives is not None
        image, name = self.negatives.image(index), self.negatives.names[index]
        # the 1 keeps these numbers apart from those of the step's own image of this index
        pixels, _, more = self._cut(image, None, name, self.negatives.files(index), self.seed, epoch, index, 1)
        return {
            "image": pixels,
            "labels": torch.zeros_like(self.labels[0]),
            "name": name,
            **more,
            **self._empty(image, pixels),
        }

    def _replayed(self, epoch: int, position: int) -> dict[str, Any]:
        assert self.replay is not None
        source, index = self.replay.source, self.replay.indices[position]
        (image, mask), name = opened(source, index), source.names[index]
        # the 2 keeps these numbers apart from those of the other images of this index
        pixels, ids, more = self._cut(image, mask, name, source.files(index), self.seed, epoch, index, 2)
        assert ids is not None
        return {
            "image": pixels,
            "labels": torch.zeros_like(self.labels[0]),
            "name": name,
            "mask": self.replay.channels[ids.long()],
            "replayed": torch.tensor(True),
            **more,
            **self._empty(image, pixels),
        }

    def _empty(self, image: Image, pixels: Tensor) -> dict[str, Tensor]:
        """Maps and regions of an image that shows no class of the step."""
        empty = {}
        if self.prior is not None:
            empty["prior"] = self._cut_maps(image, np.zeros((len(self.prior.classes), 1, 1), np.uint8), 0)
        if self.regions is not None:
            empty["regions"] = torch.zeros(pixels.shape[1:], dtype=torch.int32)
        return empty

    def _cut(
        self, image: Image, mask: Image | None, name: str, files: Sequence[Path], *key: int
    ) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        with random_numbers_from(*key):
            pixels, ids = self.transform(image, mask)
        if self.saliency is None:
            return pixels, ids, {}
        values = self._cut_beside(image, self.saliency.read(name, image.size, next(iter(files), None)), *key)
        return pixels, ids, {"saliency": values.float() / 255}

    def _cut_beside(self, image: Image, beside: Image, *key: int) -> Tensor:
        """A map or ids of the image's size, cut as the image of these numbers is."""
        with random_numbers_from(*key):
            _, values = self.transform(image, beside)
        assert values is not None
        return values

    def _cut_maps(self, image: Image, maps: NDArray[np.uint8], *key: int) -> Tensor:
        assert isinstance(self.transform, TrainingCrop)
        with random_numbers_from(*key):  # those of the image
            return self.transform.maps(image, maps)

    def sampler(self, batch: int, passes: int = 1) -> EpochSampler:
        """The order of an epoch, with negatives and replayed images in their places of each batch.

        Args:
            batch: images of a batch over all processes, negatives and replayed images included.
            passes: passes over the step's images that make an epoch.

        Raises:
            UserError: a share leaves no place for these, or none for the step's own images.
        """
        places = self.places(batch)
        mixed_in = []
        if self.negatives is not None:
            mixed_in.append(MixedIn(places["negatives"], self._negatives))
        if self.replay is not None:
            mixed_in.append(MixedIn(places["replayed"], len(self.replay.indices)))
        if sum(extra.places for extra in mixed_in) >= batch:
            raise UserError(
                f"negatives and replayed images take all places of a batch of {batch}; choose a smaller "
                "--data.negative-share or --data.replay-share, or a larger batch"
            )
        return EpochSampler(len(self), self.seed, batch, mixed_in, passes)

    def places(self, batch: int) -> dict[str, int]:
        """How many places of a batch negatives and replayed images take; 0 where there are none."""
        negatives = places_of(self.negative_share, batch, "negatives", "negative-share") if self.negatives else 0
        replayed = places_of(self.replay.share, batch, "replayed images", "replay-share") if self.replay else 0
        return {"negatives": negatives, "replayed": replayed}


def opened(source: ImageSource, index: int) -> tuple[Image, Image | None]:
    """An image and its mask; a UserError if their sizes differ."""
    image, mask = source.image(index), source.mask(index)
    if mask is not None and (wrong := mismatch(source.names[index], image.size, mask.size)):
        raise UserError(wrong)
    return image, mask


def places_of(share: float, batch: int, what: str, option: str) -> int:
    """The places that a share of a batch makes; a UserError if these are none or all."""
    places = round(share * batch)
    if not 0 < places < batch:
        raise UserError(
            f"a share of {share} {what} makes {places} of a batch of {batch}; expected 1 to {batch - 1}: choose "
            f"another --data.{option} or a larger batch"
        )
    return places


class MixedIn(NamedTuple):
    """Images that are mixed into the batches beside the step's own."""

    places: int  # in each batch
    images: int


class EpochSampler(Sampler[tuple[int, int]]):
    """Yield (pass, position): every position once in each pass, in an order that derives from (seed, pass) alone.

    Passes are counted from the first epoch on: with one pass an epoch, they are the epochs. With images mixed in, the
    sampler yields whole batches only, and these take the last places of each, one kind after the other, with the pass
    of the batch's first image. None of them comes again before all of its kind have come once.

    Args:
        length: number of the step's own positions.
        seed: of the order, at least 0.
        batch: positions in a batch, all kinds included; not used if nothing is mixed in.
        mixed_in: the other kinds; their positions follow the step's own.
        passes: passes that make an epoch.
    """

    def __init__(
        self, length: int, seed: int, batch: int = 1, mixed_in: Sequence[MixedIn] = (), passes: int = 1
    ) -> None:
        self.length, self.seed, self.passes, self.epoch = length, seed, passes, 0
        self.batch, self.mixed_in = batch, tuple(mixed_in)
        self.own = batch - sum(extra.places for extra in mixed_in)  # places of the step's own images

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._batches * self.batch if self.mixed_in else self.passes * self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        own: list[tuple[int, int]] = []
        others: list[list[int]] = []
        numbers = range(self.epoch * self.passes, (self.epoch + 1) * self.passes)
        for number in numbers:
            with random_numbers_from(self.seed, number):
                own += [(number, position) for position in torch.randperm(self.length).tolist()]
                if self.mixed_in and number == numbers[-1]:
                    others = self._others()
        if not self.mixed_in:
            yield from own
        for batch, extra in enumerate(others):
            keys = own[batch * self.own : (batch + 1) * self.own]
            yield from keys
            yield from ((keys[0][0], position) for position in extra)

    @property
    def _batches(self) -> int:
        return self.passes * self.length // self.own

    def _others(self) -> list[list[int]]:
        """The positions that are mixed into each batch."""
        batches, first, parts = self._batches, self.length, []
        for places, images in self.mixed_in:
            rounds = [torch.randperm(images) for _ in range(math.ceil(batches * places / images))]
            drawn = torch.cat([*rounds, torch.empty(0, dtype=torch.int64)])[: batches * places]
            parts.append(first + drawn.view(batches, places))
            first += images
        return torch.cat(parts, 1).tolist()


@contextmanager
def random_numbers_from(*key: int) -> Iterator[None]:
    """Let torch's CPU random numbers in the block derive from `key` alone; the generator then goes on as before."""
    state = torch.get_rng_state()
    # Not torch.manual_seed, which would seed the GPUs as well.
    torch.default_generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
    try:
        yield
    finally:
        torch.set_rng_state(state)

"""Calls of every raw op on tensors without values: for what depends on sizes, strides and dtypes alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Call = tuple[str, tuple[Any, ...]]  # the raw op, and its arguments


@dataclass(frozen=True)
class Blank:
    """Makes such tensors, for maps of `classes` that are laid out as `cases.lay_out` names it."""

    classes: int
    dtype: torch.dtype
    size: tuple[int, int] = (32, 32)
    layout: str = "contiguous"  # or channels_last, or transposed
    batch: int = 2
    device: str = "meta"

    @property
    def old(self) -> int:
        return max(1, self.classes // 4 * 3)

    @property
    def acc(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.acc, device=self.device)

    def map(self, classes: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        shape = (self.batch, self.classes if classes is None else classes, *(size or self.size))
        if self.layout == "transposed":
            turned = (*shape[:2], *shape[:1:-1])
            return torch.empty(turned, dtype=self.dtype, device=self.device).transpose(2, 3)
        layout = torch.channels_last if self.layout == "channels_last" else torch.contiguous_format
        return torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=layout)

    def image_labels(self) -> Tensor:
        return self.tensor(self.batch, self.classes - 1, dtype=torch.bool)


def pooling(blank: Blank) -> Iterator[Call]:
    z, pooled = blank.map(), blank.tensor(blank.batch, blank.classes)
    options = (1.0, 3.0, 0.01, True)
    yield "ngwp_focal_pool", (z, *options)
    yield "ngwp_focal_pool_backward", (pooled, z, pooled, pooled, *options)


def soft_margin(blank: Blank) -> Iterator[Call]:
    z, old, weight, grad = blank.map(), blank.map(blank.old), blank.tensor(blank.batch), blank.tensor()
    yield "localization_prior_loss", (z, old)
    yield "localization_prior_loss_backward", (grad, z, old)
    for image_weight in (weight, None):
        yield "soft_margin_loss", (z, z, image_weight)
        yield "soft_margin_loss_backward", (grad, z, z, image_weight)


def pseudo_labels(blank: Blank) -> Iterator[Call]:
    z, old, labels = blank.map(), blank.map(blank.old), blank.image_labels()
    new = blank.classes - blank.old
    priors = [(None, 0.0), (blank.map(new), 0.5)] if new else [(None, 0.0)]  # one class is an old one
    for old_yields, prior in itertools.product((False, True), priors):
        yield "merge_pseudo_labels", (z, old, labels, 0.5, 0.25, old_yields, *prior)
        yield "pseudo_label_loss", (z, z, old, labels, 0.5, None, old_yields, *prior, True)
        yield "pseudo_label_loss", (z, z, old, labels, 0.5, None, old_yields, *prior, False)
    yield "pseudo_label_loss_backward", (blank.tensor(), blank.tensor(blank.batch), z)


def pamr(blank: Blank) -> Iterator[Call]:
    height, width = blank.size
    for labels in (None, blank.image_labels()):
        mask = blank.map(size=(max(1, height // 2), max(1, width // 2)))
        yield "pamr", (blank.map(3), mask, labels, 3, [1, 2, 4, 8, 12])
        yield "par", (blank.map(3), mask, labels, 3, [1, 2, 4, 8, 12, 24])


def walk(blank: Blank) -> Iterator[Call]:
    for radius, steps in ((5, 17), (8, 3), (5, 0)):
        yield "random_walk", (blank.map(), blank.map(1), radius, 10.0, steps)


def confident(blank: Blank) -> Iterator[Call]:
    z, gates = blank.map(), blank.image_labels()
    labels = blank.tensor(blank.batch, *blank.size, dtype=torch.int64)
    counts = blank.tensor(blank.batch, blank.classes, dtype=torch.int64)
    yield "confident_labels", (z, gates, 0.7, 0.6, 0.2, -1)
    yield "balanced_cross_entropy", (z, labels, counts, gates, -1)
    yield "balanced_cross_entropy_backward", (blank.tensor(), z, labels, counts, gates, -1)


def upsampled(blank: Blank) -> Iterator[Call]:
    z, large = blank.map(), tuple(16 * side for side in blank.size)
    labels = blank.tensor(blank.batch, *large, dtype=torch.uint8)
    for op in ("upsampled_soft_margin_loss", "upsampled_cross_entropy"):
        for aligned in (False, True):
            yield op, (z, labels, 255, aligned, True)
            yield op, (z, labels, 255, aligned, False)
    yield "upsampled_argmax", (z, *large, False)


def one_versus_rest(blank: Blank) -> Iterator[Call]:
    z = blank.map(max(2, blank.classes))  # one class has no others
    yield "one_versus_rest", (z,)
    yield "one_versus_rest_backward", (z, z)


def prior(blank: Blank) -> Iterator[Call]:
    if blank.classes == 1:  # is the background
        return
    z, old, labels, grad = blank.map(), blank.map(blank.old), blank.image_labels(), blank.tensor()
    maps = blank.map(blank.classes - blank.old)
    for source in ((maps, None, None), (None, blank.tensor(blank.classes, blank.classes), old)):
        yield "prior_loss", (z, labels, *source)
        yield "prior_loss_backward", (grad, z, labels, *source)


FAMILIES: dict[str, Callable[[Blank], Iterator[Call]]] = {
    family.__name__: family
    for family in (pooling, soft_margin, pseudo_labels, pamr, walk, confident, upsampled, one_versus_rest, prior)
}

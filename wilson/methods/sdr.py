"""Repulsion and attraction of sparse latent representations (SDR, Michieli and Zanuttigh, CVPR 2021)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from wilson import distributed
from wilson.config.masks import VOID
from wilson.data.loading import Batch
from wilson.models import Prediction, SegmentationModel

from .base import Settings
from .mib import Mib

MATCHING, CLUSTERING, SPARSITY = 0.01, 0.001, 0.001  # weights, as published


class Sdr(Mib):
    """MiB's terms, and three that shape the encoder's features around one prototype per class (Sec. 4).

    Matching keeps the mean feature of an old class, where the old model sees it in the background, at its prototype.
    Clustering draws the features of new classes to their prototypes, and pushes mean features of classes apart.
    Sparsity compares the exponentials of a pixel's channels with the channels themselves.

    The published code keeps running means of features as prototypes, from the base step on, and takes classes over the
    batch of a process. Here prototypes are the means over the images of the step in the features of the model before
    it, found by `prepare`, and classes are taken image by image: neither changes with how batches are cut up.
    Background has no prototype, because any other class may hide in it. Sparsity needs features of 0 or more, so it
    looks at the positive parts of others.
    """

    weight: ClassVar[float] = 100.0
    prototypes: Tensor  # (C, D), 0 where the step shows no such class
    known: Tensor  # (C,), bool: the classes that have a prototype

    def __init__(
        self, model: SegmentationModel, old: SegmentationModel | None, settings: Settings | None = None
    ) -> None:
        super().__init__(model, old, settings)
        self.register_buffer("prototypes", torch.zeros(model.classes, model.feature_channels))
        self.register_buffer("known", torch.zeros(model.classes, dtype=torch.bool))

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Find the prototypes: mean features of the old model, by its own labels in the background and by the masks."""
        sums = torch.zeros_like(self.prototypes, dtype=torch.float64)
        counts = torch.zeros(len(sums), 1, dtype=torch.float64, device=sums.device)
        for batch in batches:
            old = self.remember(batch)
            labels, remembered = coarse_labels(batch["mask"], old, old.features)
            hot = one_hot(torch.where(labels == 0, remembered, labels), len(sums))
            sums += torch.einsum("bdhw,bhwc->cd", old.features.double(), hot.double())
            counts += hot.sum((0, 1, 2))[:, None]
        sums, counts = distributed.total(sums), distributed.total(counts)
        self.known.copy_(counts[:, 0] > 0)
        self.known[0] = False
        self.prototypes.copy_(sums / counts.clamp(min=1))

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        now, old = self.model(batch["image"]), self.remember(batch)
        features = now.features.float()
        labels, remembered = coarse_labels(batch["mask"], old, features)
        attraction, repulsion = clustering(features, labels, self.prototypes, self.known)
        return {
            **self.terms(now.logits, old.logits, batch["mask"]),
            "match": self.config.distillation * MATCHING * matching(features, remembered, self.prototypes, self.known),
            "attract": CLUSTERING * attraction,
            "repel": CLUSTERING * repulsion,
            "sparse": SPARSITY * sparsity(features, labels, len(self.prototypes)),
        }


def coarse_labels(mask: Tensor, old: Prediction, features: Tensor) -> tuple[Tensor, Tensor]:
    """The mask at the size of the features, and what the old model sees in its background.

    Args:
        mask: `(B, H, W)`, background, a new class, or 255.
        old: of the old model.
        features: `(B, D, h, w)`.

    Returns:
        Labels of the nearest pixels `(B, h, w)`, and the old model's classes where they are background, 255 elsewhere.
    """
    labels, seen = (
        F.interpolate(classes[:, None].float(), size=features.shape[2:], mode="nearest")[:, 0].long()
        for classes in (mask, old.logits.argmax(1))
    )
    return labels, torch.where(labels == 0, seen, VOID)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B, h, w) -> (B, h, w, C), 0 or 1; zeros where a label is 255."""
    return F.one_hot(labels.clamp(max=classes), classes + 1)[..., :classes]


def mean_features(features: Tensor, hot: Tensor) -> tuple[Tensor, Tensor]:
    """Mean feature of each class of each image (B, C, D), and which classes an image has (B, C)."""
    counts = hot.sum((1, 2))
    return torch.einsum("bdhw,bhwc->bcd", features, hot.to(features.dtype)) / counts.clamp(min=1)[..., None], counts > 0


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over images of the mean over the chosen values of each, 0 for an image without any."""
    return ((values * chosen).sum(1) / chosen.sum(1).clamp(min=1)).mean()


def matching(features: Tensor, labels: Tensor, prototypes: Tensor, known: Tensor) -> Tensor:
    """Mean squared difference between mean features of classes and their prototypes (prototypes matching, Sec. 4.1).

    Args:
        features: `(B, D, h, w)`.
        labels: `(B, h, w)`, classes or 255.
        prototypes: `(C, D)`.
        known: `(C,)`, bool: the classes that have a prototype; others add nothing.

    Returns:
        A scalar, the mean over the classes of an image, then over images; differentiable in `features`.
    """
    means, present = mean_features(features, one_hot(labels, len(prototypes)))
    return mean_over((means - prototypes).square().mean(2), present & known)


def clustering(features: Tensor, labels: Tensor, prototypes: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Attraction and repulsion of the contrastive learning (Sec. 4.2).

    Args:
        features: `(B, D, h, w)`.
        labels: `(B, h, w)`, classes or 255.
        prototypes: `(C, D)`.
        known: `(C,)`, bool: the classes that have a prototype; others attract nothing.

    Returns:
        Two scalars, differentiable in `features`: the mean squared difference between features and the prototype of
        their class, mean over the pixels of a class, the classes of an image, and images; and one over the Euclidean
        distance of mean features, mean over the pairs of classes in an image, background included, and images.
    """
    hot = one_hot(labels, len(prototypes))
    means, present = mean_features(features, hot)
    difference = features - F.embedding(labels.clamp(max=len(prototypes) - 1), prototypes).movedim(3, 1)
    squares, _ = mean_features(difference.square().mean(1, keepdim=True), hot)
    attraction = mean_over(squares[..., 0], present & known)
    pairs = (present[:, :, None] & present[:, None, :]).triu(1).flatten(1)
    distances = torch.cdist(means, means).flatten(1)
    return attraction, mean_over(1 / torch.where(pairs & (distances > 0), distances, torch.inf), pairs)


def sparsity(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Sum of the exponentials of a pixel's channels over their sum, each over the class's greatest (Sec. 4.3).

    Args:
        features: `(B, D, h, w)`.
        labels: `(B, h, w)`, classes or 255, which are left out.
        classes: C.

    Returns:
        A scalar, the mean over the pixels of an image that have a positive feature, then over images; differentiable in
        `features`.
    """
    features = features.relu().flatten(2)
    greatest, places = features.amax(1), labels.clamp(max=classes).flatten(1)
    most = greatest.new_zeros(len(greatest), classes + 1).scatter_reduce(1, places, greatest, "amax")
    counted = (greatest > 0) & (places < classes)
    shares = features / torch.where(counted, most.gather(1, places), 1)[:, None]
    return mean_over(shares.exp().sum(1) / torch.where(counted, shares.sum(1), 1), counted)

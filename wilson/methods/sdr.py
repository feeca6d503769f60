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
from wilson.models import SegmentationModel

from .base import Method, Settings
from .mib import unbiased_cross_entropy, unbiased_distillation
from .upsampling import upsample

DISTILLATION, MATCHING, CLUSTERING, SPARSITY = 100.0, 0.01, 0.001, 0.001  # weights, as published
# Repulsion and sparsity are quotients, whose gradients grow as one over the square of the divisor. Mean features nearer
# to each other than this share of the longest count as equal, and pixels whose channels sum up to less as empty.
LEAST = 1e-3


class Sdr(Method):
    """MiB's two terms, and three that shape the encoder's features around one prototype per class (Sec. 4).

    Matching keeps the mean feature of an old class, where the old model sees it in the background, at its prototype.
    Clustering draws the features of new classes to their prototypes, and pushes mean features of classes apart.
    Sparsity compares the exponentials of a pixel's channels with the channels themselves.

    The published code keeps running means of features as prototypes, from the base step on, and takes classes over the
    batch of a process. Here prototypes are the means over the images of the step in the features of the model before
    it, found by `prepare`, and classes are taken image by image. So neither changes with how batches are cut up, and
    the prototypes of new classes do not follow the training. Background has no prototype, because any other class may
    hide in it; the published code draws it to zero. Pixels of 255 count in none of the three. Sparsity needs features
    of 0 or more, so it looks at the positive parts of others.
    """

    pixel_supervised: ClassVar[bool] = True
    softmax: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    prototypes: Tensor  # (C, D), 0 for the background and for classes that the step does not show

    def __init__(
        self, model: SegmentationModel, old: SegmentationModel | None, settings: Settings | None = None
    ) -> None:
        super().__init__(model, old, settings)
        self.register_buffer("prototypes", torch.zeros(model.classes, model.feature_channels))

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Find the prototypes: mean features of the old model, by its own labels in the background and by the masks."""
        sums = torch.zeros_like(self.prototypes, dtype=torch.float64)
        counts = torch.zeros(len(sums), 1, dtype=torch.float64, device=sums.device)
        for batch in batches:
            old = self.remember(batch)
            labels, remembered = coarse_labels(batch["mask"], old.logits, old.features.shape[2:])
            hot = one_hot(torch.where(labels == 0, remembered, labels), len(sums))
            sums += torch.einsum("bdhw,bhwc->cd", old.features.double(), hot.double())
            counts += hot.sum((0, 1, 2))[:, None]
        self.prototypes.copy_(distributed.total(sums) / distributed.total(counts).clamp(min=1))
        self.prototypes[0] = 0

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        now, old, size = self.model(batch["image"]), self.remember(batch), batch["mask"].shape[1:]
        logits, old_logits = upsample(now.logits, size), upsample(old.logits, size)
        labels, remembered = coarse_labels(batch["mask"], old.logits, now.features.shape[2:])
        with torch.autocast(now.features.device.type, enabled=False):  # sums over pixels leave the range of float16
            features = now.features.float()
            match = matching(features, remembered, self.prototypes)
            attraction, repulsion = clustering(features, labels, self.prototypes)
            sparse = sparsity(features, labels, len(self.prototypes))
        kept = self.config.distillation
        return {
            "ce": unbiased_cross_entropy(logits, batch["mask"], self.old_classes),
            "kd": kept * DISTILLATION * unbiased_distillation(logits, old_logits),
            "match": kept * MATCHING * match,
            "attract": CLUSTERING * attraction,
            "repel": CLUSTERING * repulsion,
            "sparse": SPARSITY * sparse,
        }


def coarse_labels(mask: Tensor, old_logits: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The mask at the size of the features, and what the old model sees in its background.

    Args:
        mask: `(B, H, W)`, background, a new class, or 255.
        old_logits: `(B, O, h', w')`, of the old model.
        size: (h, w) of the features.

    Returns:
        Labels of the nearest pixels `(B, h, w)`, and the old model's classes where they are background, 255 elsewhere.
    """
    labels, seen = (
        F.interpolate(classes[:, None].float(), size=size, mode="nearest")[:, 0].long()
        for classes in (mask, old_logits.argmax(1))
    )
    return labels, torch.where(labels == 0, seen, VOID)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B, h, w) -> (B, h, w, C), 0 or 1; zeros where a label is 255."""
    return F.one_hot(labels.clamp(max=classes), classes + 1)[..., :classes]


def mean_features(features: Tensor, hot: Tensor) -> tuple[Tensor, Tensor]:
    """Mean feature of each class of each image, and which classes an image has.

    Args:
        features: `(B, D, h, w)`.
        hot: `(B, h, w, C)`, one-hot labels.

    Returns:
        `(B, C, D)`, zeros for a class that an image does not have, and `(B, C)`, bool.
    """
    counts = hot.sum((1, 2))
    return torch.einsum("bdhw,bhwc->bcd", features, hot.to(features.dtype)) / counts.clamp(min=1)[..., None], counts > 0


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over images of the mean over the chosen values (B, N) of each, 0 for an image without any."""
    return ((values * chosen).sum(1) / chosen.sum(1).clamp(min=1)).mean()


def matching(features: Tensor, labels: Tensor, prototypes: Tensor) -> Tensor:
    """Mean squared difference between mean features of classes and their prototypes (prototypes matching, Sec. 4.1).

    Args:
        features: `(B, D, h, w)`.
        labels: `(B, h, w)`, classes or 255.
        prototypes: `(C, D)`; a class whose prototype is 0 adds nothing.

    Returns:
        A scalar, the mean over the classes of an image, then over images; differentiable in `features`.
    """
    means, present = mean_features(features, one_hot(labels, len(prototypes)))
    return mean_over((means - prototypes).square().mean(2), present & prototypes.any(1))


def clustering(features: Tensor, labels: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
    """Attraction and repulsion of the contrastive learning (Sec. 4.2).

    Args:
        features: `(B, D, h, w)`.
        labels: `(B, h, w)`, classes or 255.
        prototypes: `(C, D)`; a class whose prototype is 0 attracts nothing.

    Returns:
        Two scalars, differentiable in `features`: the mean squared difference between features and the prototype of
        their class, mean over the pixels of a class, the classes of an image, and images; and one over the Euclidean
        distance of mean features, mean over the pairs of classes in an image, background included, and images. Equal
        means repel each other by 0, as their distance has no direction.
    """
    hot = one_hot(labels, len(prototypes))
    means, present = mean_features(features, hot)
    difference = features - F.embedding(labels.clamp(max=len(prototypes) - 1), prototypes).movedim(3, 1)
    squares, _ = mean_features(difference.square().mean(1, keepdim=True), hot)
    attraction = mean_over(squares[..., 0], present & prototypes.any(1))
    pairs = (present[:, :, None] & present[:, None, :]).triu(1).flatten(1)
    # The way by matrix products, which cdist takes from 26 classes on, cancels where means are near to each other
    distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").flatten(1)
    apart = distances > LEAST * torch.linalg.vector_norm(means, dim=2).amax(1, keepdim=True)
    return attraction, mean_over(1 / torch.where(pairs & apart, distances, torch.inf), pairs)


def sparsity(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Sum of the exponentials of a pixel's channels over their sum, each over the class's greatest (Sec. 4.3).

    Args:
        features: `(B, D, h, w)`.
        labels: `(B, h, w)`, classes or 255, which are left out.
        classes: C.

    Returns:
        A scalar, the mean over the pixels of an image that are not empty, then over images; differentiable in
        `features`.
    """
    features, labels = features.relu().flatten(2), labels.clamp(max=classes).flatten(1)
    greatest = features.amax(1)
    most = greatest.new_zeros(len(greatest), classes + 1).scatter_reduce(1, labels, greatest, "amax").gather(1, labels)
    shares = features / torch.where(most > 0, most, 1)[:, None]
    sums = shares.sum(1)
    counted = (labels < classes) & (sums > LEAST)
    return mean_over(shares.exp().sum(1) / torch.where(counted, sums, 1), counted)

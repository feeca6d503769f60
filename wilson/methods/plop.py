"""Pseudo-labels and local POD (PLOP, Douillard et al., CVPR 2021)."""

from __future__ import annotations

import math
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
from .hooks import outputs
from .upsampling import upsample

SCALES = (1, 2, 4)  # number of pooling cells per side
FEATURES, LOGITS = 0.01, 0.0005  # weights of the stages and of the logits, as published


class Plop(Method):
    """Cross-entropy with the old model's labels for background pixels, and distillation of pooled features (Sec. 3).

    A background pixel takes the old model's class if the entropy of the old softmax is under the median for that class;
    otherwise it is left out. `prepare` finds the medians in one pass over the training images. The loss of an image is
    weighted by the share of its background pixels that are kept. Local POD compares the outputs of all stages of the
    backbone, and the logits after those of new classes are added to the background's. New classifiers start as in MiB.
    The published code also accepts any entropy under a floor, and compares stages before their activation.
    """

    pixel_supervised: ClassVar[bool] = True
    softmax: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    inner: ClassVar[bool] = True
    thresholds: Tensor  # (O,), of the entropy, in 0..1

    def __init__(
        self, model: SegmentationModel, old: SegmentationModel | None, settings: Settings | None = None
    ) -> None:
        super().__init__(model, old, settings)
        model.start_from_background(model.classes - self.old_classes)
        self.register_buffer("thresholds", torch.zeros(self.old_classes))

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch]) -> None:
        """Find the median entropy of each old class over the background pixels of the training images."""
        edges = torch.logspace(-6, 0, 601, device=self.thresholds.device)  # 2.3 % apart
        # float32 would stop counting at 2^24 pixels
        counts = torch.zeros(self.old_classes, len(edges) + 1, dtype=torch.float64, device=edges.device)
        for batch in batches:
            classes, entropy = guess(upsample(self.remember(batch).logits, batch["mask"].shape[1:]))
            background = batch["mask"] < self.old_classes
            places = torch.bucketize(entropy[background], edges)
            counts.index_put_((classes[background], places), counts.new_ones(()), accumulate=True)
        counts = distributed.total(counts)
        total = counts.sum(1, keepdim=True)
        middle = (counts.cumsum(1) < total / 2).sum(1).clamp(max=len(edges) - 1)
        self.thresholds.copy_(torch.where(total[:, 0] > 0, edges[middle], 0))

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        size = batch["mask"].shape[1:]
        with outputs(self.model.stages()) as features:
            logits = self.model(batch["image"]).logits
        with outputs(self.old.stages()) as old_features:
            old_logits = self.remember(batch).logits
        labels, share = self.pseudo_labels(upsample(old_logits, size), batch["mask"])
        ce = F.cross_entropy(upsample(logits, size), labels, ignore_index=VOID, reduction="none")
        pod = FEATURES * sum(local_pod(now, old) for now, old in zip(features, old_features, strict=True))
        folded = torch.cat(
            [logits[:, :1] + logits[:, self.old_classes :].sum(1, True), logits[:, 1 : self.old_classes]], 1
        )
        pod = (pod + LOGITS * local_pod(folded, old_logits)) / (len(features) + 1)
        growth = math.sqrt(self.model.classes / (self.model.classes - self.old_classes))
        return {"ce": (share[:, None, None] * ce).mean(), "pod": self.config.distillation * growth * pod}

    def pseudo_labels(self, old_logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Fill the background of a mask with the old model's confident labels.

        Args:
            old_logits: `(B, O, H, W)`.
            mask: `(B, H, W)`, background, a new class, or 255.

        Returns:
            The labels to learn from `(B, H, W)`, 255 where there is none, and the share of background pixels that got a
            label `(B,)`, 1 for an image without background.
        """
        classes, entropy = guess(old_logits)
        background = mask < self.old_classes
        kept = background & (entropy < self.thresholds[classes])
        labels = torch.where(kept, classes, torch.where(background, VOID, mask))
        found, all_of_them = kept.flatten(1).sum(1), background.flatten(1).sum(1)
        return labels, torch.where(all_of_them > 0, found / all_of_them.clamp(min=1), 1.0)


def guess(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The class of every pixel, and the entropy of its softmax scaled to 0..1: `(B, H, W)` each."""
    log = logits.log_softmax(1)
    return logits.argmax(1), -(log.exp() * log).sum(1) / math.log(logits.shape[1])


def local_pod(features: Tensor, old: Tensor) -> Tensor:
    """Local POD: the Euclidean distance between the :func:`strips` of two maps, mean over images.

    Args:
        features: `(B, C, H, W)`.
        old: `(B, C, H, W)`, of the old model.

    Returns:
        A scalar, differentiable in both.
    """
    return torch.linalg.vector_norm(strips(features.float()) - strips(old.float()), dim=1).mean()


def strips(features: Tensor) -> Tensor:
    """Means of the squares along rows and columns of s x s cells, for each s of `SCALES`: (B, C, H, W) -> (B, N)."""
    (batch, channels), found = features.shape[:2], []
    for s in SCALES:
        h, w = features.shape[2] // s, features.shape[3] // s
        cells = features[:, :, : h * s, : w * s].square().reshape(batch, channels, s, h, s, w)
        found += [cells.mean(5).flatten(1), cells.mean(3).flatten(1)] if h and w else []
    return torch.cat(found, 1)

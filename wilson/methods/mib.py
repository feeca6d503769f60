"""Modeling the background (MiB, Cermelli et al., CVPR 2020): old and new classes hide in the background."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from wilson.config.masks import VOID
from wilson.data.loading import Batch
from wilson.models import SegmentationModel

from .base import Method, Settings
from .lwf import distil
from .upsampling import upsample

WEIGHT = 10.0  # of the distillation, as published


class Mib(Method):
    """Unbiased cross-entropy, unbiased distillation, and new classifiers that start from the background (Sec. 3.2).

    In the masks of a step, background may be any old class, so its probability is that of background and old classes
    together. For the old model, background may be any new class, so it teaches the sum of background and new classes.
    """

    pixel_supervised: ClassVar[bool] = True
    softmax: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    def __init__(
        self, model: SegmentationModel, old: SegmentationModel | None, settings: Settings | None = None
    ) -> None:
        super().__init__(model, old, settings)
        model.start_from_background(model.classes - self.old_classes)

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        size = batch["mask"].shape[1:]
        logits = upsample(self.model(batch["image"]).logits, size)
        old = upsample(self.remember(batch).logits, size)
        return {
            "ce": unbiased_cross_entropy(logits, batch["mask"], self.old_classes),
            "kd": self.config.distillation * WEIGHT * unbiased_distillation(logits, old),
        }


def unbiased_cross_entropy(logits: Tensor, labels: Tensor, old: int) -> Tensor:
    """Cross-entropy in which the label background means background or any old class; mean over all pixels.

    Args:
        logits: `(B, C, H, W)`.
        labels: `(B, H, W)`, background or a new class; 255 adds 0 and counts in the mean.
        old: O, background included.

    Returns:
        A scalar, differentiable in `logits`.
    """
    background = logits[:, :old].logsumexp(1, keepdim=True)
    labels, ignored = (labels - old + 1).clamp(min=0), VOID - old + 1
    logits = torch.cat([background, logits[:, old:]], 1)
    return F.cross_entropy(logits, labels, ignore_index=ignored, reduction="none").mean()


def unbiased_distillation(logits: Tensor, old_logits: Tensor) -> Tensor:
    """Distillation in which the old background means background or any new class; mean over classes and pixels.

    Args:
        logits: `(B, C, H, W)`.
        old_logits: `(B, O, H, W)`, of the old model.

    Returns:
        A scalar, differentiable in both.
    """
    old = old_logits.shape[1]
    background = torch.cat([logits[:, :1], logits[:, old:]], 1).logsumexp(1, keepdim=True)
    return distil(torch.cat([background, logits[:, 1:old]], 1), old_logits)

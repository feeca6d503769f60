"""Modeling the background (MiB, Cermelli et al., CVPR 2020): old and new classes hide in the background."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from wilson.data.sources import VOID
from wilson.models import Segmenter

from .base import Batch, Method, Settings
from .lwf import distil
from .upsampling import upsample

WEIGHT = 10.0  # of the distillation, as published


class Mib(Method):
    """Unbiased cross-entropy, unbiased distillation, and new classifiers that start from the background (Sec. 3.2).

    In the masks of a step the background may be any old class, so its probability is that of background and old classes
    together; for the old model the background may be any new class, so it teaches the sum of background and new ones.
    """

    pixel_supervised: ClassVar[bool] = True
    softmax: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    def __init__(self, model: Segmenter, old: Segmenter | None, settings: Settings | None = None) -> None:
        super().__init__(model, old, settings)
        start_from_background(model)

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        size = batch["mask"].shape[1:]
        logits = upsample(self.model(batch["image"]).logits, size)
        old = upsample(self.remember(batch).logits, size)
        return {
            "ce": unbiased_cross_entropy(logits, batch["mask"], self.old_classes),
            "kd": self.config.distillation * WEIGHT * unbiased_distillation(logits, old),
        }


def unbiased_cross_entropy(logits: Tensor, labels: Tensor, old: int) -> Tensor:
    """Cross-entropy in which the background is background or any old class.

    Args:
        logits: `(B, C, H, W)`.
        labels: `(B, H, W)`, background or one of the new classes; 255 is left out.
        old: O, background included.
    """
    background = logits[:, :old].logsumexp(1, keepdim=True)
    labels, ignored = (labels - old + 1).clamp(min=0), VOID - old + 1
    loss = F.cross_entropy(torch.cat([background, logits[:, old:]], 1), labels, ignore_index=ignored, reduction="sum")
    return loss / (labels != ignored).sum().clamp(min=1)


def unbiased_distillation(logits: Tensor, old_logits: Tensor) -> Tensor:
    """Distillation in which the old model's background is background or any new class; mean over classes and pixels.

    Args:
        logits: `(B, C, H, W)`.
        old_logits: `(B, O, H, W)`.
    """
    old = old_logits.shape[1]
    background = torch.cat([logits[:, :1], logits[:, old:]], 1).logsumexp(1, keepdim=True)
    return distil(torch.cat([background, logits[:, 1:old]], 1), old_logits)


@torch.no_grad()
def start_from_background(model: Segmenter) -> None:
    """Share the background's probability among it and the N new classes: its weights for all, bias less log(N + 1)."""
    first, new = model.classifiers[0], model.classifiers[-1]
    assert isinstance(first, torch.nn.Conv2d) and isinstance(new, torch.nn.Conv2d)
    assert first.bias is not None and new.bias is not None
    first.bias[0] -= math.log(new.out_channels + 1)
    new.weight.copy_(first.weight[:1].expand_as(new.weight))
    new.bias.fill_(first.bias[0])

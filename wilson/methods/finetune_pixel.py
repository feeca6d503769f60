"""Fine-tuning on the masks of the step: what happens to pixel-supervised learning without the old model."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from wilson import ops
from wilson.config.masks import VOID
from wilson.data.loading import Batch

from .base import Method


class FinetunePixel(Method):
    """Softmax cross-entropy of the upsampled logits; old classes are background in the masks.

    As in MiB's published code, the mean is over all pixels: those without a label add 0 and count.
    """

    pixel_supervised: ClassVar[bool] = True
    softmax: ClassVar[bool] = True

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return {"ce": self.cross_entropy(self.model(batch["image"]).logits, batch["mask"])}

    @staticmethod
    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of logits (B, C, h, w) against labels (B, H, W), mean over all pixels; a scalar."""
        counted = (labels >= 0) & (labels < logits.shape[1]) & (labels != VOID)
        loss = ops.upsampled_cross_entropy(logits, labels)  # mean over counted pixels
        return loss * (counted.sum().to(loss.dtype) / labels.numel())

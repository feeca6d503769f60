"""Fine-tuning on the masks of the step: what happens to pixel-supervised learning without the old model."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from wilson import ops
from wilson.data.loading import Batch

from .base import Method


class FinetunePixel(Method):
    """Softmax cross-entropy of the upsampled logits, mean over pixels; old classes are background in the masks."""

    pixel_supervised: ClassVar[bool] = True
    softmax: ClassVar[bool] = True

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return {"ce": ops.upsampled_cross_entropy(self.model(batch["image"]).logits, batch["mask"])}

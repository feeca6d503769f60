"""Learning from dense labels: the base step, all classes at once (offline), all classes seen so far (joint)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from wilson import ops
from wilson.data.loading import Batch

from .base import Method


class Supervised(Method):
    """Binary cross-entropy of the upsampled logits against the one-hot label (published code, after MiB)."""

    pixel_supervised: ClassVar[bool] = True

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return {"seg": ops.upsampled_soft_margin_loss(self.model(batch["image"]).logits, batch["mask"])}

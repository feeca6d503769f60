"""Learning from dense labels: the base step, all classes at once (offline), all classes seen so far (joint)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from wilson import ops
from wilson.data.loading import Batch

from .base import Method


class Supervised(Method):
    """Binary cross-entropy of the upsampled logits against the one-hot label (published code, after MiB).

    Of a softmax model, the one-versus-rest logits take the place of the logits.
    """

    pixel_supervised: ClassVar[bool] = True

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        logits = self.odds(self.model(batch["image"]).logits)
        return {"seg": ops.upsampled_soft_margin_loss(logits, batch["mask"])}

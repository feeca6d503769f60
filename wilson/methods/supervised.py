"""Learning from dense labels: the base step, and all classes at once (offline)."""

from __future__ import annotations

from torch import Tensor

from wilson import ops
from wilson.models import Segmenter

from .base import Batch, Method


class Supervised(Method):
    """Binary cross-entropy of the upsampled logits against the one-hot label (published code, after MiB)."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        return {"seg": ops.upsampled_soft_margin_loss(self.model(batch["image"]).logits, batch["mask"])}

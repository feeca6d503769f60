"""Learning without forgetting (Li and Hoiem, ECCV 2016): the model keeps the old model's probabilities."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from wilson.data.loading import Batch
from wilson.models import Prediction

from .finetune_pixel import FinetunePixel
from .upsampling import upsample

WEIGHT = 100.0  # of the distillation, as in the comparison that MiB published


class Lwf(FinetunePixel):
    """Cross-entropy, and distillation of the old model's softmax into the softmax of the old classes (Eq. 2, 3).

    As in MiB's comparison, the temperature is 1, and the distillation is a mean over classes and pixels of the image.
    """

    remembers: ClassVar[bool] = True

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        now, old = self.model(batch["image"]), self.remember(batch)
        ce = self.cross_entropy(now.logits, batch["mask"])
        return {"ce": ce, **self.distillation(now, old, batch["mask"].shape[1:])}

    def distillation(self, now: Prediction, old: Prediction, size: tuple[int, ...]) -> dict[str, Tensor]:
        """The weighted loss terms that hold on to the old model, at the size (H, W) of the image."""
        kd = distil(upsample(now.logits[:, : self.old_classes], size), upsample(old.logits, size))
        return {"kd": self.config.distillation * WEIGHT * kd}


def distil(logits: Tensor, old_logits: Tensor) -> Tensor:
    """Cross-entropy between two softmaxes, mean over classes and pixels.

    Args:
        logits: `(B, O, H, W)`.
        old_logits: `(B, O, H, W)`, of the teacher.

    Returns:
        A scalar, differentiable in both.
    """
    return -(old_logits.softmax(1) * logits.log_softmax(1)).mean()

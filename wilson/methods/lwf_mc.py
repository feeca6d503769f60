"""Learning without forgetting, multi-class (Rebuffi et al., iCaRL, CVPR 2017), without its memory of images."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from wilson import ops
from wilson.data.loading import Batch

from .base import Method
from .upsampling import upsample

WEIGHT = 10.0  # of the distillation, as in the comparison that MiB published


class LwfMc(Method):
    """Binary cross-entropy against the masks, and for old classes against the old model's sigmoid (iCaRL, Alg. 3).

    As in MiB's comparison, both terms are taken at the image's size, summed over classes and averaged over pixels.
    Of a softmax model, both read the one-versus-rest logits.
    """

    pixel_supervised: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        size = batch["mask"].shape[1:]
        logits, old = self.odds(self.model(batch["image"]).logits), self.odds(self.remember(batch).logits)
        kd = ops.localization_prior_loss(upsample(logits[:, : self.old_classes], size), upsample(old, size))
        return {
            "bce": ops.upsampled_soft_margin_loss(logits, batch["mask"]),
            "kd": self.config.distillation * WEIGHT * self.old_classes * kd,  # undoes the op's mean over classes
        }

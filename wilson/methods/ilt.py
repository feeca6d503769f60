"""Incremental learning techniques for semantic segmentation (Michieli and Zanuttigh, ICCV Workshops 2019)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from wilson.models import Prediction

from .lwf import Lwf

WEIGHT = 100.0  # of the distillation of features, as in the comparison that MiB published


class Ilt(Lwf):
    """LwF's terms, and the mean squared difference between the encoder's features and the old model's (L2, Sec. 4)."""

    def distillation(self, now: Prediction, old: Prediction, size: tuple[int, ...]) -> dict[str, Tensor]:
        features = F.mse_loss(now.features, old.features)
        return {**super().distillation(now, old, size), "enc": self.config.distillation * WEIGHT * features}

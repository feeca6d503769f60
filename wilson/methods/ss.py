"""Single-stage segmentation from image labels (Araslanov and Roth, CVPR 2020) as a source of hard labels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from wilson.config import Pooling
from wilson.data.loading import Batch

from .two_stage import TwoStage


class SingleStage(TwoStage):
    """CLS on nGWP with the focal penalty, over a background score of 1; SSS joins in the second half of the warm-up.

    PAMR refines the labels of SSS. That paper's stochastic gate and global cue are left out: the localizer is WILSON's.
    """

    pooling: ClassVar[Pooling] = "ngwp_focal"

    def visible(self, scores: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(scores[:, :1]), super().visible(scores)[:, 1:]], 1)

    def localization(self, scores: Tensor, eval_scores: Tensor, batch: Batch, epoch: int) -> dict[str, Tensor]:
        terms = super().localization(scores, eval_scores, batch, epoch)
        if epoch >= self.warmup // 2:
            terms |= self.weighted(sss=self.self_supervision(scores, eval_scores, batch))
        return terms

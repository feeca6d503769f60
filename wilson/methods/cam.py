"""Class activation maps (Zhou et al., CVPR 2016) as hard labels."""

from __future__ import annotations

import torch
from torch import Tensor

from .two_stage import TwoStage

THRESHOLD = 0.25  # of a map whose peak is 1: what lies under it is background


class Cam(TwoStage):
    """A localizer learns by CLS on the plain mean of its scores; its positive scores over their peak are the maps."""

    def confidence(self, eval_scores: Tensor, labels: Tensor) -> Tensor:
        maps = eval_scores[:, 1:].relu() * labels[:, :, None, None]
        maps = maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-5)
        return torch.cat([torch.full_like(maps[:, :1], THRESHOLD), maps], 1)

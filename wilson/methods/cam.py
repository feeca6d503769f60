"""Class activation maps (Zhou et al., CVPR 2016) as hard labels."""

from __future__ import annotations

import torch
from torch import Tensor

from .two_stage import TwoStage

THRESHOLD = 0.25  # of a map's peak; pixels under it are background


class Cam(TwoStage):
    """CLS on the plain mean of the scores trains the localizer. A map is the positive scores divided by their peak."""

    def confidence(self, eval_scores: Tensor, labels: Tensor) -> Tensor:
        maps = eval_scores[:, 1:].relu() * labels[:, :, None, None]
        maps = maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-5)
        return torch.cat([torch.full_like(maps[:, :1], THRESHOLD), maps], 1)

"""Explicit pseudo-pixel supervision (EPS, Lee et al., CVPR 2021): saliency maps tell objects from background."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from wilson.data.loading import Batch

from .two_stage import TwoStage

OVERLAP = 0.4  # share of a class's pixels that must be salient, as published
FOREGROUND = 0.5  # weight of the foreground map in the estimated saliency, as published


class Eps(TwoStage):
    """CLS on the plain mean of the scores, and the squared difference between estimated and given saliency.

    The background is a class of its own; only the saliency term teaches it.
    """

    def localization(self, scores: Tensor, eval_scores: Tensor, batch: Batch, epoch: int) -> dict[str, Tensor]:
        terms = super().localization(scores, eval_scores, batch, epoch)
        return {**terms, "saliency": saliency_loss(scores, batch["labels"], batch["saliency"])}


def saliency_loss(scores: Tensor, labels: Tensor, saliency: Tensor) -> Tensor:
    """Mean of (lam M_fg + (1 - lam)(1 - M_bg) - M_s)^2; lam = 0.5 (EPS, Sec. 3).

    M is the softmax of the scores. A class of the image is foreground if more than 0.4 of its pixels are salient. M_fg
    sums these classes; M_bg sums the background and the other classes of the image.

    Args:
        scores: `(B, C, h, w)`.
        labels: `(B, C-1)`, image-level labels.
        saliency: M_s `(B, H, W)`, in [0, 1]; averaged over areas to the size of the scores.

    Returns:
        A scalar, differentiable in `scores`.
    """
    maps = scores.softmax(1)
    saliency = F.adaptive_avg_pool2d(saliency.to(maps.dtype), (maps.shape[2], maps.shape[3]))
    claimed = maps[:, 1:].detach().round()
    salient = (claimed * saliency.round().unsqueeze(1)).sum((2, 3)) / (claimed.sum((2, 3)) + 1e-4)
    present = labels.to(maps.dtype)
    foreground = present * (salient > OVERLAP)
    m_fg = (maps[:, 1:] * foreground[:, :, None, None]).sum(1)
    m_bg = maps[:, 0] + (maps[:, 1:] * (present - foreground)[:, :, None, None]).sum(1)
    return F.mse_loss(FOREGROUND * m_fg + (1 - FOREGROUND) * (1 - m_bg), saliency)

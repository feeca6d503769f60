"""Maps at another size: logits at the image's, for losses that have no op on logits at feature resolution, and scores
at the logits', for models whose features are coarser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners not aligned; float64 for float64 logits, else float32.

    Args:
        logits: `(B, C, h, w)`.
        size: (H, W).
    """
    if logits.dtype != torch.float64:
        logits = logits.float()
    return F.interpolate(logits, size=list(size), mode="bilinear", align_corners=False)


def at_size_of(scores: Tensor, logits: Tensor) -> Tensor:
    """Scores (B, C, h, w) at the height and width of logits (B, K, H, W): themselves where these are equal."""
    return scores if scores.shape[2:] == logits.shape[2:] else upsample(scores, logits.shape[2:])

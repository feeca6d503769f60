"""Logits at the image's size, for losses that have no op on logits at feature resolution."""

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

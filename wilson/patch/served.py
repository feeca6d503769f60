"""Which cross-entropies the fused loss serves."""

from __future__ import annotations

import torch
from torch import Tensor

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def reason_against(batch: int, classes: int, labels: object, ignore_index: object) -> str:
    """Why `ops.upsampled_cross_entropy` cannot take logits `(batch, classes, H, W)` and these; empty where it can."""
    if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS:
        return "the labels are no integers"
    if labels.dim() != 3 or len(labels) != batch or not labels.numel():
        return "the labels are not (B, H, W)"
    if not isinstance(ignore_index, int):
        return "the label to skip is no integer"
    if ignore_index == 255 and classes > 255:
        return "255 is a class and the label to skip"
    return ""

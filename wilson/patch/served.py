"""Which cross-entropies the fused loss serves, and how it reads logits whose corners are aligned."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

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


def align_corners(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor] | None:
    """Logits and labels for the ops, which do not align corners, that give the loss with aligned corners.

    They are the old ones in a frame, whose pixels are skipped. Between n logits and N pixels of a side, aligned corners
    put pixel i at logit i (n-1)/(N-1), and the ops pixel j at (j + 1/2) n'/N' - 1/2. With (n-1)/(N-1) = p/q in lowest
    terms, sides n' = k p and N' = k q, and (p-1)/2 logits and (q-1)/2 pixels put before, both are the same. That takes
    odd p and q, as even n and N always have.

    Returns:
        The pair, or None where no frame does it.
    """
    low, high = [], []
    for n, size in zip(logits.shape[:1:-1], labels.shape[:0:-1], strict=True):  # width first, as F.pad has it
        if n == 1:
            low += [0, 0]
            high += [0, 0]
            continue
        divisor = math.gcd(n - 1, size - 1)
        p, q = (n - 1) // divisor, (size - 1) // divisor
        if p % 2 == 0 or q % 2 == 0:
            return None
        before, pixels_before = (p - 1) // 2, (q - 1) // 2
        k = max(-(-(n + before) // p), -(-(size + pixels_before) // q))
        low += [before, k * p - n - before]
        high += [pixels_before, k * q - size - pixels_before]
    return F.pad(logits, low, mode="replicate"), F.pad(labels.long(), high, value=ignore_index)

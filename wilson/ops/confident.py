"""Choosing the pixels that exactly one class claims, and the loss on them (SSS)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks, _library, _registry, reference
from ._autograd import first_order, under_transform

__all__ = ["balanced_cross_entropy", "confident_labels"]

CONFIDENT = "confident_labels"
BALANCED = "balanced_cross_entropy"


# --------------------------------------------------------------------------------------------------- confident pixels


@_registry.raw("confident_labels")
def _confident(
    refined: Tensor, image_labels: Tensor, background_ratio: float, class_ratio: float, floor: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    _library.note_reference(CONFIDENT, refined)
    return reference.confident_labels(
        refined,
        image_labels,
        background_ratio=background_ratio,
        class_ratio=class_ratio,
        floor=floor,
        ignore_index=ignore_index,
    )


@torch.library.register_fake(_confident)
def _(refined: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    batch, classes, height, width = refined.shape
    return (
        refined.new_empty((batch, height, width), dtype=torch.int64),
        refined.new_empty((batch, classes), dtype=torch.int64),
    )


@_registry.op("pixels that exactly one class claims")
def confident_labels(
    refined: Tensor,
    image_labels: Tensor,
    *,
    background_ratio: float = 0.7,
    class_ratio: float = 0.6,
    floor: float = 0.2,
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor]:
    """Label the pixels that exactly one class claims.

    The scores are gated first (times the image-level labels, background untouched). A class claims the pixels whose
    score is strictly above max(ratio * its peak in the image, floor); a pixel claimed by several classes is dropped.
    WILSON's published code (the paper takes the step from Araslanov and Roth, CVPR 2020).

    Args:
        refined: scores r `(B, C, H, W)`, background first, floating; the output of :func:`pamr`.
        image_labels: `(B, C-1)`, no background column; bool, integer or floating, 0 or 1.
        background_ratio: share of the peak for the background.
        class_ratio: share of the peak for the other classes.
        floor: least threshold, in units of the scores.
        ignore_index: label of unclaimed pixels, outside 0..C-1.

    Returns:
        Labels `(B, H, W)` and counts of labelled pixels `(B, C)`, both int64.

    Raises:
        TypeError: refined is not floating.
        ValueError: shapes do not match, or ignore_index is within 0..C-1.

    Not differentiable.
    """
    _checks.scores(CONFIDENT, "refined", refined)
    _checks.image_labels(CONFIDENT, image_labels, *refined.shape[:2])
    _checks.outside_classes(CONFIDENT, ignore_index, refined.shape[1])
    _checks.same_device(CONFIDENT, refined=refined, image_labels=image_labels)
    if under_transform():
        return reference.confident_labels(
            refined,
            image_labels,
            background_ratio=background_ratio,
            class_ratio=class_ratio,
            floor=floor,
            ignore_index=ignore_index,
        )
    return _confident(
        refined.detach(),
        image_labels.detach(),
        float(background_ratio),
        float(class_ratio),
        float(floor),
        int(ignore_index),
    )


# ------------------------------------------------------------------------------------------------ the loss on them


@_registry.raw("balanced_cross_entropy")
def _balanced_forward(
    scores: Tensor, labels: Tensor, counts: Tensor, image_labels: Tensor, ignore_index: int
) -> Tensor:
    _library.note_reference(BALANCED, scores)
    return reference.balanced_cross_entropy(scores, labels, counts, image_labels, ignore_index=ignore_index)


@torch.library.register_fake(_balanced_forward)
def _(scores: Tensor, *others: object) -> Tensor:
    return scores.new_empty((), dtype=reference.accumulate(scores))


@_registry.raw("balanced_cross_entropy_backward")
def _balanced_backward(
    grad: Tensor, scores: Tensor, labels: Tensor, counts: Tensor, image_labels: Tensor, ignore_index: int
) -> Tensor:
    """(softmax - onehot) w_c / (B P) at labelled pixels of the images that count."""
    _library.note_reference(BALANCED, scores)
    valid, index = reference.valid_labels(labels, scores.shape[1], ignore_index)
    weight = reference.balanced_weights(counts, image_labels, grad.dtype)  # (B, C)
    pixel_weight = weight.gather(1, index.flatten(1)).view(index.shape) * valid
    factor = (pixel_weight * (grad / max(labels.numel(), 1))).unsqueeze(1)
    derivative = scores.to(grad.dtype).softmax(1)
    derivative.scatter_add_(1, index.unsqueeze(1), -torch.ones_like(factor))
    return torch.empty_like(scores).copy_(torch.where(factor != 0, derivative * factor, 0))


@torch.library.register_fake(_balanced_backward)
def _(grad: Tensor, scores: Tensor, *others: object) -> Tensor:
    return torch.empty_like(scores)


class _BalancedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, labels: Tensor, counts: Tensor, image_labels: Tensor, ignore_index: int
    ) -> Tensor:
        ctx.save_for_backward(scores, labels, counts, image_labels)
        ctx.ignore_index = ignore_index
        return _balanced_forward(scores, labels, counts, image_labels, ignore_index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, *constants = ctx.saved_tensors
        grad_scores = _balanced_backward(grad.detach(), scores.detach(), *constants, ctx.ignore_index)
        return first_order(BALANCED, grad_scores, scores), None, None, None, None


@_registry.op("cross-entropy on those, rarer classes weighing more", gradient_to="scores")
def balanced_cross_entropy(
    scores: Tensor, labels: Tensor, counts: Tensor, image_labels: Tensor, *, ignore_index: int = 255
) -> Tensor:
    """Cross-entropy on confident pixels, rarer classes weighing more (SSS).

    With n_c pixels of class c in the image and n their sum, w_c = (n - n_c) / (1 + n)::

        loss = 1/B sum_b [number of classes with n_c > 0 is 1 + sum y] 1/P sum_i w_c(i) CE(z_i, c(i))

    Unlabelled pixels add 0 and count in P; images that do not qualify add 0 and count in B. WILSON's published code.

    Args:
        scores: localizer scores z `(B, C, H, W)`; float64, float32, bfloat16 or float16, any strides.
        labels: `(B, H, W)` integers; ignore_index and values outside 0..C-1 are skipped. From :func:`confident_labels`.
        counts: pixels of each class `(B, C)`, integers. From :func:`confident_labels`.
        image_labels: `(B, C-1)`, no background column; bool, integer or floating, 0 or 1.
        ignore_index: the label of pixels to skip, outside 0..C-1.

    Returns:
        The loss, a scalar; float64 for float64 scores, else float32. 0 for an empty batch.

    Raises:
        TypeError: scores are not floating, or labels or counts not integers.
        ValueError: shapes do not match, or ignore_index is within 0..C-1.

    Differentiable once with respect to `scores`.
    """
    _checks.scores(BALANCED, "scores", scores)
    batch, classes, height, width = scores.shape
    _checks.label_map(BALANCED, labels, batch, (height, width))
    _checks.integers(BALANCED, "counts", counts)
    if counts.shape != (batch, classes):
        raise ValueError(f"{BALANCED}: counts must be (B, C) = {(batch, classes)}, got {tuple(counts.shape)}")
    _checks.image_labels(BALANCED, image_labels, batch, classes)
    _checks.outside_classes(BALANCED, ignore_index, classes)
    _checks.same_device(BALANCED, scores=scores, labels=labels, counts=counts, image_labels=image_labels)
    if under_transform():
        return reference.balanced_cross_entropy(scores, labels, counts, image_labels, ignore_index=ignore_index)
    constants = (labels, counts, image_labels.detach(), int(ignore_index))
    if torch.is_grad_enabled() and scores.requires_grad:
        return _BalancedCrossEntropy.apply(scores, *constants)
    return _balanced_forward(scores.detach(), *constants)

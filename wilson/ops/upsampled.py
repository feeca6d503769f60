"""Losses and labels at the image's size, from logits at feature resolution (base step, evaluation)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks, _library, _registry, reference
from ._autograd import first_order, scaled, under_transform

__all__ = ["upsampled_argmax", "upsampled_cross_entropy", "upsampled_soft_margin_loss"]

MARGIN = "upsampled_soft_margin_loss"
ENTROPY = "upsampled_cross_entropy"
ARGMAX = "upsampled_argmax"


def _derivative(
    probabilities: Tensor, labels: Tensor, logits: Tensor, ignore_index: int, align_corners: bool
) -> Tensor:
    """Of the loss summed over pixels: `probabilities` - onehot where there is a class, at the logits' resolution."""
    if not logits.shape[0]:
        return probabilities.new_zeros(logits.shape)
    valid, index = reference.valid_labels(labels, logits.shape[1], ignore_index)
    probabilities.scatter_add_(1, index.unsqueeze(1), -torch.ones_like(probabilities[:, :1]))
    grad_up = probabilities.masked_fill(~valid.unsqueeze(1), 0)
    # the transpose of the bilinear upsampling
    return torch.ops.aten.upsample_bilinear2d_backward(grad_up, grad_up.shape[2:], logits.shape, align_corners)


def _empty_derivative(logits: Tensor, wanted: bool) -> Tensor:
    """What the ops return as derivative, for tracing: (B, C, H, W), or nothing."""
    dtype = reference.accumulate(logits)
    return logits.new_empty(logits.shape if wanted else 0, dtype=dtype)


# -------------------------------------------------------------------------------------- binary cross-entropy, one-hot


@_registry.raw("upsampled_soft_margin_loss")
def _margin(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, with_derivative: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and the derivative of the sum over pixels if asked: sigmoid - onehot where there is a class."""
    _library.note_reference(MARGIN, logits)
    loss = reference.upsampled_soft_margin_loss(logits, labels, ignore_index=ignore_index, align_corners=align_corners)
    if not with_derivative:
        return loss, loss.new_empty(0)
    probabilities = reference.upsample(logits, labels.shape[1:], align_corners).sigmoid()
    return loss, _derivative(probabilities, labels, logits, ignore_index, align_corners)


@torch.library.register_fake(_margin)
def _(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, with_derivative: bool
) -> tuple[Tensor, Tensor]:
    return logits.new_empty((), dtype=reference.accumulate(logits)), _empty_derivative(logits, with_derivative)


class _UpsampledSoftMarginLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool) -> Tensor:
        loss, derivative = _margin(logits, labels, ignore_index, align_corners, True)
        ctx.save_for_backward(logits, derivative)  # the logits, only for the refusal of second derivatives
        ctx.pixels = max(labels.numel(), 1)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, derivative = ctx.saved_tensors
        grad_logits = scaled(derivative, grad.detach() / ctx.pixels, logits.dtype)
        return first_order(MARGIN, grad_logits, logits), None, None, None


@_registry.op("the base step's loss, on logits at feature resolution", gradient_to="logits")
def upsampled_soft_margin_loss(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, align_corners: bool = False
) -> Tensor:
    """The base step's loss: binary cross-entropy of the upsampled logits against the one-hot label.

    Logits are upsampled to the labels' size (bilinear); sum over classes, mean over all pixels.
    WILSON's published code (after MiB, Cermelli et al., CVPR 2020).

    Args:
        logits: `(B, C, H, W)` at feature resolution; float64, float32, bfloat16 or float16, any strides.
        labels: `(B, H', W')` integers of any width. A pixel labelled ignore_index or outside 0..C-1 adds 0 but is
            counted in the mean.
        ignore_index: a label to skip; with more than 255 classes not 255, which then is one.
        align_corners: how logits are upsampled, as in `F.interpolate`.

    Returns:
        The loss, a scalar; float64 for float64 logits, else float32. 0 for an empty batch.

    Raises:
        TypeError: logits are not floating, or labels not integers.
        ValueError: ranks or batches do not match, a dimension but the batch is empty, or ignore_index is 255 with more
            than 255 classes.

    Differentiable once with respect to `logits`.
    """
    _checks.scores(MARGIN, "logits", logits)
    _checks.label_map(MARGIN, labels, logits.shape[0])
    ignore_index = _checks.ignored(MARGIN, ignore_index, logits.shape[1])
    _checks.same_device(MARGIN, logits=logits, labels=labels)
    if under_transform():
        return reference.upsampled_soft_margin_loss(
            logits, labels, ignore_index=ignore_index, align_corners=align_corners
        )
    if torch.is_grad_enabled() and logits.requires_grad:
        return _UpsampledSoftMarginLoss.apply(logits, labels, ignore_index, align_corners)
    return _margin(logits.detach(), labels, ignore_index, align_corners, False)[0]


# --------------------------------------------------------------------------------------------- softmax cross-entropy


@_registry.raw("upsampled_cross_entropy")
def _entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, with_derivative: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; the pixels with a class, at least 1; and softmax - onehot summed over them, if asked."""
    _library.note_reference(ENTROPY, logits)
    loss = reference.upsampled_cross_entropy(logits, labels, ignore_index=ignore_index, align_corners=align_corners)
    valid, _ = reference.valid_labels(labels, logits.shape[1], ignore_index)
    counted = valid.sum().clamp(min=1).to(loss.dtype)
    if not with_derivative:
        return loss, counted, loss.new_empty(0)
    probabilities = reference.upsample(logits, labels.shape[1:], align_corners).softmax(1)
    return loss, counted, _derivative(probabilities, labels, logits, ignore_index, align_corners)


@torch.library.register_fake(_entropy)
def _(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, with_derivative: bool
) -> tuple[Tensor, Tensor, Tensor]:
    loss = logits.new_empty((), dtype=reference.accumulate(logits))
    return loss, torch.empty_like(loss), _empty_derivative(logits, with_derivative)


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool) -> Tensor:
        loss, counted, derivative = _entropy(logits, labels, ignore_index, align_corners, True)
        ctx.save_for_backward(logits, counted, derivative)  # the logits, only for the refusal of second derivatives
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, counted, derivative = ctx.saved_tensors
        grad_logits = scaled(derivative, grad.detach() / counted, logits.dtype)
        return first_order(ENTROPY, grad_logits, logits), None, None, None


@_registry.op("softmax cross-entropy, on logits at feature resolution", gradient_to="logits")
def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, align_corners: bool = False
) -> Tensor:
    """Softmax cross-entropy of the upsampled logits, mean over the pixels that carry a class.

    What `F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels, ignore_index=...)` computes,
    except that no counted pixel gives 0 instead of NaN, and labels outside 0..C-1 are skipped.

    Args:
        logits: `(B, C, H, W)` at feature resolution; float64, float32, bfloat16 or float16, any strides.
        labels: `(B, H', W')` integers of any width. A pixel labelled ignore_index or outside 0..C-1 is skipped.
        ignore_index: a label to skip; with more than 255 classes not 255, which then is one.
        align_corners: how logits are upsampled, as in `F.interpolate`.

    Returns:
        The loss, a scalar; float64 for float64 logits, else float32. 0 if no pixel counts.

    Raises:
        TypeError: logits are not floating, or labels not integers.
        ValueError: ranks or batches do not match, a dimension but the batch is empty, or ignore_index is 255 with more
            than 255 classes.

    Differentiable once with respect to `logits`.
    """
    _checks.scores(ENTROPY, "logits", logits)
    _checks.label_map(ENTROPY, labels, logits.shape[0])
    ignore_index = _checks.ignored(ENTROPY, ignore_index, logits.shape[1])
    _checks.same_device(ENTROPY, logits=logits, labels=labels)
    if under_transform():
        return reference.upsampled_cross_entropy(logits, labels, ignore_index=ignore_index, align_corners=align_corners)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _UpsampledCrossEntropy.apply(logits, labels, ignore_index, align_corners)
    return _entropy(logits.detach(), labels, ignore_index, align_corners, False)[0]


# ------------------------------------------------------------------------------------------------------------ labels


@_registry.raw("upsampled_argmax")
def _argmax(logits: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    _library.note_reference(ARGMAX, logits)
    return reference.upsampled_argmax(logits, (height, width), align_corners=align_corners)


@torch.library.register_fake(_argmax)
def _(logits: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    dtype = torch.int64 if logits.shape[1] > 255 else torch.uint8
    return logits.new_empty((logits.shape[0], height, width), dtype=dtype)


@_registry.op("predicted classes at the image's size")
def upsampled_argmax(logits: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """The predicted class of every pixel of the image, from logits at feature resolution.

    Arg-max over classes of the bilinearly upsampled logits; the first of equals.

    Args:
        logits: `(B, C, H, W)`; float64, float32, bfloat16 or float16, any strides.
        size: (H', W') of the result, each at least 1.
        align_corners: how logits are upsampled, as in `F.interpolate`.

    Returns:
        Classes `(B, H', W')`, uint8 (int64 above 255 classes).

    Raises:
        TypeError: logits are not floating.
        ValueError: logits are not `(B, C, H, W)`, or a dimension but the batch is empty, or a side of size is under 1.

    Not differentiable.
    """
    _checks.scores(ARGMAX, "logits", logits)
    height, width = _checks.size(ARGMAX, size)
    if under_transform():
        return reference.upsampled_argmax(logits, (height, width), align_corners=align_corners)
    return _argmax(logits.detach(), height, width, align_corners)

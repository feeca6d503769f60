"""Losses and labels at the image's size, from logits at feature resolution (base step, evaluation)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks, _library, reference
from ._autograd import first_order

MARGIN = "upsampled_soft_margin_loss"
ENTROPY = "upsampled_cross_entropy"
ARGMAX = "upsampled_argmax"


def _downsample_gradient(grad_up: Tensor, logits: Tensor) -> Tensor:
    """The transpose of the bilinear upsampling, in the dtype of the logits."""
    grad = grad_up.new_zeros(logits.shape)
    if logits.shape[0]:
        grad = torch.ops.aten.upsample_bilinear2d_backward(grad_up, grad_up.shape[2:], logits.shape, False)
    return torch.empty_like(logits).copy_(grad)


# -------------------------------------------------------------------------------------- binary cross-entropy, one-hot


@torch.library.custom_op("wilson::upsampled_soft_margin_loss", mutates_args=())
def _margin_forward(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    _library.note_reference(MARGIN, logits)
    return reference.upsampled_soft_margin_loss(logits, labels, ignore_index=ignore_index)


@_margin_forward.register_fake
def _(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return logits.new_empty((), dtype=reference.accumulate(logits))


@torch.library.custom_op("wilson::upsampled_soft_margin_loss_backward", mutates_args=())
def _margin_backward(grad: Tensor, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """(sigmoid - onehot) / (B P) at pixels with a class, brought down to the logits' resolution."""
    _library.note_reference(MARGIN, logits)
    derivative = reference.upsample(logits, labels.shape[1:]).sigmoid()
    valid, index = reference.valid_labels(labels, logits.shape[1], ignore_index)
    derivative.scatter_add_(1, index.unsqueeze(1), -torch.ones_like(derivative[:, :1]))
    factor = valid.unsqueeze(1) * (grad / max(labels.numel(), 1))
    return _downsample_gradient(derivative * factor, logits)


@_margin_backward.register_fake
def _(grad: Tensor, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return torch.empty_like(logits)


class _UpsampledSoftMarginLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        ctx.save_for_backward(logits, labels)
        ctx.ignore_index = ignore_index
        return _margin_forward(logits, labels, ignore_index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        grad_logits = _margin_backward(grad.detach(), logits.detach(), labels, ctx.ignore_index)
        return first_order(MARGIN, grad_logits, logits), None, None


def upsampled_soft_margin_loss(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """The base step's loss: binary cross-entropy of the upsampled logits against the one-hot label.

    Logits are upsampled to the labels' size (bilinear, corners not aligned); sum over classes, mean over all pixels.
    WILSON's published code (after MiB, Cermelli et al., CVPR 2020).

    Args:
        logits: `(B, C, H, W)` at feature resolution; float64, float32, bfloat16 or float16, any strides.
        labels: `(B, H', W')` integers of any width. A pixel labelled ignore_index or outside 0..C-1 adds 0 but is
            counted in the mean.
        ignore_index: a label to skip.

    Returns:
        The loss, a scalar; float64 for float64 logits, else float32. 0 for an empty batch.

    Raises:
        TypeError: logits are not floating, or labels not integers.
        ValueError: ranks or batches do not match, or a dimension but the batch is empty.

    Differentiable once with respect to `logits`.
    """
    _checks.scores(MARGIN, "logits", logits)
    _checks.label_map(MARGIN, labels, logits.shape[0])
    _checks.same_device(MARGIN, logits=logits, labels=labels)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _UpsampledSoftMarginLoss.apply(logits, labels, int(ignore_index))
    return _margin_forward(logits.detach(), labels, int(ignore_index))


# --------------------------------------------------------------------------------------------- softmax cross-entropy


@torch.library.custom_op("wilson::upsampled_cross_entropy", mutates_args=())
def _entropy_forward(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    _library.note_reference(ENTROPY, logits)
    return reference.upsampled_cross_entropy(logits, labels, ignore_index=ignore_index)


@_entropy_forward.register_fake
def _(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return logits.new_empty((), dtype=reference.accumulate(logits))


@torch.library.custom_op("wilson::upsampled_cross_entropy_backward", mutates_args=())
def _entropy_backward(grad: Tensor, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """(softmax - onehot) / counted pixels, brought down to the logits' resolution."""
    _library.note_reference(ENTROPY, logits)
    derivative = reference.upsample(logits, labels.shape[1:]).softmax(1)
    valid, index = reference.valid_labels(labels, logits.shape[1], ignore_index)
    derivative.scatter_add_(1, index.unsqueeze(1), -torch.ones_like(derivative[:, :1]))
    factor = valid.unsqueeze(1) * (grad / valid.sum().clamp(min=1))
    return _downsample_gradient(derivative * factor, logits)


@_entropy_backward.register_fake
def _(grad: Tensor, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    return torch.empty_like(logits)


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        ctx.save_for_backward(logits, labels)
        ctx.ignore_index = ignore_index
        return _entropy_forward(logits, labels, ignore_index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        grad_logits = _entropy_backward(grad.detach(), logits.detach(), labels, ctx.ignore_index)
        return first_order(ENTROPY, grad_logits, logits), None, None


def upsampled_cross_entropy(logits: Tensor, labels: Tensor, *, ignore_index: int = 255) -> Tensor:
    """Softmax cross-entropy of the upsampled logits, mean over the pixels that carry a class.

    What `F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels, ignore_index=...)` computes,
    except that no counted pixel gives 0 instead of NaN, and labels outside 0..C-1 are skipped.

    Args:
        logits: `(B, C, H, W)` at feature resolution; float64, float32, bfloat16 or float16, any strides.
        labels: `(B, H', W')` integers of any width. A pixel labelled ignore_index or outside 0..C-1 is skipped.
        ignore_index: a label to skip.

    Returns:
        The loss, a scalar; float64 for float64 logits, else float32. 0 if no pixel counts.

    Raises:
        TypeError: logits are not floating, or labels not integers.
        ValueError: ranks or batches do not match, or a dimension but the batch is empty.

    Differentiable once with respect to `logits`.
    """
    _checks.scores(ENTROPY, "logits", logits)
    _checks.label_map(ENTROPY, labels, logits.shape[0])
    _checks.same_device(ENTROPY, logits=logits, labels=labels)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _UpsampledCrossEntropy.apply(logits, labels, int(ignore_index))
    return _entropy_forward(logits.detach(), labels, int(ignore_index))


# ------------------------------------------------------------------------------------------------------------ labels


@torch.library.custom_op("wilson::upsampled_argmax", mutates_args=())
def _argmax(logits: Tensor, height: int, width: int) -> Tensor:
    _library.note_reference(ARGMAX, logits)
    return reference.upsampled_argmax(logits, (height, width))


@_argmax.register_fake
def _(logits: Tensor, height: int, width: int) -> Tensor:
    dtype = torch.int64 if logits.shape[1] > 255 else torch.uint8
    return logits.new_empty((logits.shape[0], height, width), dtype=dtype)


def upsampled_argmax(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The predicted class of every pixel of the image, from logits at feature resolution.

    Arg-max over classes of the bilinearly upsampled logits (corners not aligned); the first of equals.

    Args:
        logits: `(B, C, H, W)`; float64, float32, bfloat16 or float16, any strides.
        size: (H', W') of the result, each at least 1.

    Returns:
        Classes `(B, H', W')`, uint8 (int64 above 255 classes).

    Raises:
        TypeError: logits are not floating.
        ValueError: logits are not `(B, C, H, W)`, or a dimension but the batch is empty, or a side of size is under 1.

    Not differentiable.
    """
    _checks.scores(ARGMAX, "logits", logits)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"{ARGMAX}: size must be (H', W'), each at least 1, got {tuple(size)!r}")
    return _argmax(logits.detach(), int(size[0]), int(size[1]))

"""Binary cross-entropy with logits against soft targets: the prior of the old model (LOC) and segmentation (SEG)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks, _library, _registry, reference
from ._autograd import first_order, under_transform

__all__ = ["localization_prior_loss", "soft_margin_loss"]

LOC = "localization_prior_loss"
SOFT = "soft_margin_loss"


# ---------------------------------------------------------------------------------------------------------------- LOC


@_registry.raw("localization_prior_loss")
def _prior_forward(scores: Tensor, old_logits: Tensor) -> Tensor:
    _library.note_reference(LOC, scores)
    return reference.localization_prior_loss(scores, old_logits)


@torch.library.register_fake(_prior_forward)
def _(scores: Tensor, old_logits: Tensor) -> Tensor:
    return scores.new_empty((), dtype=reference.accumulate(scores, old_logits))


@_registry.raw("localization_prior_loss_backward")
def _prior_backward(grad: Tensor, scores: Tensor, old_logits: Tensor) -> Tensor:
    """(sigmoid(z) - omega) / (B O P) for the old classes, 0 for the new ones."""
    _library.note_reference(LOC, scores)
    old = old_logits.shape[1]
    z = scores[:, :old].to(grad.dtype)
    derivative = z.sigmoid() - old_logits.to(grad.dtype).sigmoid()
    grad_scores = torch.zeros_like(scores)
    grad_scores[:, :old] = derivative * (grad / max(z.numel(), 1))
    return grad_scores


@torch.library.register_fake(_prior_backward)
def _(grad: Tensor, scores: Tensor, *others: object) -> Tensor:
    return torch.empty_like(scores)


class _LocalizationPriorLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, old_logits: Tensor) -> Tensor:
        ctx.save_for_backward(scores, old_logits)
        return _prior_forward(scores, old_logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        scores, old_logits = ctx.saved_tensors
        grad_scores = _prior_backward(grad.detach(), scores.detach(), old_logits)
        return first_order(LOC, grad_scores, scores), None


@_registry.op("localizer against the old model's output (Eq. 4)", gradient_to="scores")
def localization_prior_loss(scores: Tensor, old_logits: Tensor) -> Tensor:
    """Pull the localizer's scores of the old classes towards what the old model sees (LOC).

    Binary cross-entropy with logits between z of the old classes, background included, and the sigmoid omega of the old
    model's logits, mean over B*O*P. WILSON (arXiv 2112.01882), Eq. 4.

    Args:
        scores: localizer scores z `(B, C, H, W)`, old classes first; float64, float32, bfloat16 or float16.
        old_logits: the old model's logits `(B, O, H, W)`, 1 <= O <= C, background first. Taken as constant.

    Returns:
        The loss, a scalar; float64 if an input is, else float32. 0 for an empty batch.

    Raises:
        TypeError: scores or old_logits are not floating.
        ValueError: ranks, batches or sizes do not match, a dimension but the batch is empty, or O > C.

    Differentiable once with respect to `scores`.
    """
    _checks.scores(LOC, "scores", scores)
    _checks.old_logits(LOC, old_logits, "scores", scores)
    _checks.same_device(LOC, scores=scores, old_logits=old_logits)
    if under_transform():
        return reference.localization_prior_loss(scores, old_logits)
    if torch.is_grad_enabled() and scores.requires_grad:
        return _LocalizationPriorLoss.apply(scores, old_logits.detach())
    return _prior_forward(scores.detach(), old_logits.detach())


# ---------------------------------------------------------------------------------------------------------------- SEG


@_registry.raw("soft_margin_loss")
def _soft_forward(logits: Tensor, targets: Tensor, image_weight: Tensor | None) -> Tensor:
    _library.note_reference(SOFT, logits)
    return reference.soft_margin_loss(logits, targets, image_weight=image_weight)


@torch.library.register_fake(_soft_forward)
def _(logits: Tensor, targets: Tensor, image_weight: Tensor | None) -> Tensor:
    return logits.new_empty((), dtype=reference.accumulate(logits, targets, image_weight))


@_registry.raw("soft_margin_loss_backward")
def _soft_backward(grad: Tensor, logits: Tensor, targets: Tensor, image_weight: Tensor | None) -> Tensor:
    _library.note_reference(SOFT, logits)
    derivative = logits.to(grad.dtype).sigmoid() - targets.to(grad.dtype)
    return torch.empty_like(logits).copy_(derivative * _image_factor(grad, logits, image_weight))


@torch.library.register_fake(_soft_backward)
def _(grad: Tensor, logits: Tensor, *others: object) -> Tensor:
    return torch.empty_like(logits)


def _image_factor(grad: Tensor, logits: Tensor, image_weight: Tensor | None) -> Tensor:
    """What sigmoid(s) - q is multiplied by: grad * g_b / (sum g + 1e-5) / P, or grad / B / P without weights."""
    batch, _, height, width = logits.shape
    grad = grad / (height * width)
    if image_weight is None:
        return grad / max(batch, 1)
    g = image_weight.to(grad.dtype)
    return (grad * g / (g.sum() + reference.IMAGE_WEIGHT_EPS))[:, None, None, None]


class _SoftMarginLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, image_weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(logits, targets, image_weight)
        return _soft_forward(logits, targets, image_weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, image_weight = ctx.saved_tensors
        grad_logits = _soft_backward(grad.detach(), logits.detach(), targets, image_weight)
        return first_order(SOFT, grad_logits, logits), None, None


@_registry.op("binary cross-entropy with soft targets and image weights (Eq. 7)", gradient_to="logits")
def soft_margin_loss(logits: Tensor, targets: Tensor, *, image_weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy with logits against soft targets: sum over classes, mean over pixels and images (SEG).

    With l_b the sum over the C classes, mean over the P pixels of image b::

        loss = sum_b g_b l_b / (sum_b g_b + 1e-5)        (without weights: mean over b)

    WILSON (arXiv 2112.01882), Eq. 7; the weights g as in the published code.

    Args:
        logits: segmentation logits s `(B, C, H, W)`; float64, float32, bfloat16 or float16, any strides.
        targets: targets q in 0..1 `(B, C, H, W)`, floating. Taken as constant.
        image_weight: weights g >= 0 of the images `(B,)`, floating, or None. Taken as constant.

    Returns:
        The loss, a scalar; float64 if an input is, else float32. 0 for an empty batch.

    Raises:
        TypeError: an argument is not floating.
        ValueError: shapes do not match, or a dimension but the batch is empty.

    Differentiable once with respect to `logits`.
    """
    _checks.scores(SOFT, "logits", logits)
    _checks.scores(SOFT, "targets", targets)
    _checks.same_shape(SOFT, "targets", targets, "logits", logits)
    if image_weight is not None:
        _checks.scores(SOFT, "image_weight", image_weight, rank=1, layout="(B,)")
        if len(image_weight) != len(logits):
            raise ValueError(f"{SOFT}: image_weight must be (B,) = ({len(logits)},), got ({len(image_weight)},)")
        image_weight = image_weight.detach()
    _checks.same_device(SOFT, logits=logits, targets=targets, image_weight=image_weight)
    if under_transform():
        return reference.soft_margin_loss(logits, targets, image_weight=image_weight)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _SoftMarginLoss.apply(logits, targets.detach(), image_weight)
    return _soft_forward(logits.detach(), targets.detach(), image_weight)

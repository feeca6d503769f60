"""Pseudo-labels from the localizer and the old model, and the segmentation loss against them in one op (SEG)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks, _library, _registry, reference
from ._autograd import first_order, scaled, under_transform

__all__ = ["merge_pseudo_labels", "pseudo_label_loss"]

MERGE = "merge_pseudo_labels"
LOSS = "pseudo_label_loss"


@_registry.raw("merge_pseudo_labels")
def _merge(
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    alpha: float,
    background_weight: float | None,
    old_yields: bool,
    prior: Tensor | None,
    prior_weight: float,
) -> tuple[Tensor, Tensor]:
    _library.note_reference(MERGE, localizer_scores)
    return reference.merge_pseudo_labels(
        localizer_scores, old_logits, image_labels,
        alpha=alpha, background=_keyword(background_weight), old_yields=old_yields,
        prior=prior, prior_weight=prior_weight,
    )  # fmt: skip


@torch.library.register_fake(_merge)
def _(
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    alpha: float,
    background_weight: float | None,
    old_yields: bool,
    prior: Tensor | None,
    prior_weight: float,
) -> tuple[Tensor, Tensor]:
    dtype = reference.accumulate(localizer_scores, old_logits, image_labels, prior)
    targets = localizer_scores.new_empty(localizer_scores.shape, dtype=dtype)
    return targets, localizer_scores.new_empty((localizer_scores.shape[0],), dtype=dtype)


def _keyword(background_weight: float | None) -> float | str:
    """The public keyword `background` that a weight stands for."""
    return "min" if background_weight is None else background_weight


@_registry.raw("pseudo_label_loss")
def _loss_forward(
    logits: Tensor,
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    alpha: float,
    background_weight: float | None,
    old_yields: bool,
    prior: Tensor | None,
    prior_weight: float,
    with_derivative: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; g_b / (sum g + 1e-5) / P of each image; and sigmoid(s) - q^ in the dtype of the logits, if asked."""
    _library.note_reference(LOSS, logits)
    dtype = reference.accumulate(logits, localizer_scores, old_logits, image_labels, prior)
    targets, g = reference.merge_pseudo_labels(
        localizer_scores.to(dtype), old_logits, image_labels,
        alpha=alpha, background=_keyword(background_weight), old_yields=old_yields,
        prior=prior, prior_weight=prior_weight,
    )  # fmt: skip
    loss = reference.soft_margin_loss(logits, targets, image_weight=g)
    factor = g / (g.sum() + reference.IMAGE_WEIGHT_EPS) / (logits.shape[2] * logits.shape[3])
    if not with_derivative:
        return loss, factor, targets.new_empty(0)
    return loss, factor, torch.empty_like(logits).copy_(logits.to(dtype).sigmoid() - targets)


@torch.library.register_fake(_loss_forward)
def _(
    logits: Tensor,
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    alpha: float,
    background_weight: float | None,
    old_yields: bool,
    prior: Tensor | None,
    prior_weight: float,
    with_derivative: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = reference.accumulate(logits, localizer_scores, old_logits, image_labels, prior)
    loss, factor = logits.new_empty((), dtype=dtype), logits.new_empty((logits.shape[0],), dtype=dtype)
    return loss, factor, torch.empty_like(logits) if with_derivative else logits.new_empty(0, dtype=dtype)


@_registry.raw("pseudo_label_loss_backward")
def _loss_backward(grad: Tensor, factor: Tensor, derivative: Tensor) -> Tensor:
    _library.note_reference(LOSS, derivative)
    return scaled(derivative, (grad * factor)[:, None, None, None], derivative.dtype)


@torch.library.register_fake(_loss_backward)
def _(grad: Tensor, factor: Tensor, derivative: Tensor) -> Tensor:
    return torch.empty_like(derivative)


class _PseudoLabelLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        localizer_scores: Tensor,
        old_logits: Tensor,
        image_labels: Tensor,
        alpha: float,
        background_weight: float | None,
        old_yields: bool,
        prior: Tensor | None,
        prior_weight: float,
    ) -> tuple[Tensor, Tensor]:
        loss, factor, derivative = _loss_forward(
            logits, localizer_scores, old_logits, image_labels,
            alpha, background_weight, old_yields, prior, prior_weight, True,
        )  # fmt: skip
        # the logits, only for the refusal of second derivatives
        ctx.save_for_backward(logits, factor, derivative)
        ctx.mark_non_differentiable(factor)
        return loss, factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, factor, derivative = ctx.saved_tensors
        grad_logits = _loss_backward(grad.detach(), factor, derivative)
        return first_order(LOSS, grad_logits, logits), None, None, None, None, None, None, None, None


def _checked(
    op: str,
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    alpha: float,
    background: float | str,
    old_yields: bool,
    prior: Tensor | None,
    prior_weight: float | None,
    **others: Tensor,
) -> tuple[Any, ...]:
    """The arguments of the raw ops, which are constants; `others` must be on their device."""
    _checks.scores(op, "localizer_scores", localizer_scores)
    _checks.old_logits(op, old_logits, "localizer_scores", localizer_scores)
    _checks.image_labels(op, image_labels, *localizer_scores.shape[:2])
    _checks.unit(op, "alpha", alpha)
    _checks.prior(op, prior, prior_weight, old_logits, "localizer_scores", localizer_scores)
    _checks.same_device(
        op, **others,
        localizer_scores=localizer_scores, old_logits=old_logits, image_labels=image_labels, prior=prior,
    )  # fmt: skip
    return (
        localizer_scores.detach(), old_logits.detach(), image_labels.detach(),
        float(alpha), _checks.background_weight(op, background), bool(old_yields),
        None if prior is None else prior.detach(), 0.0 if prior_weight is None else float(prior_weight),
    )  # fmt: skip


@_registry.op("localizer's pseudo-labels merged with the old model's output (Eq. 5, 6)")
def merge_pseudo_labels(
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    *,
    alpha: float = 0.5,
    background: float | str = "min",
    old_yields: bool = False,
    prior: Tensor | None = None,
    prior_weight: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Targets for the segmentation model: the localizer for background and new classes, the old model for old ones.

    m is the softmax of the localizer's scores times the image-level labels: the background is not gated, and nothing is
    renormalised. h is 1 where a class reaches the maximum over classes, for every class of a tie. omega is the sigmoid
    of the old model's logits. Then::

        q = alpha * h + (1 - alpha) * m
        q^_0 = min(omega_0, q_0)    q^_c = omega_c for old c    q^_c = q_c for new c

    With `old_yields`, omega_c (1 - M) stands for omega_c before the merge, the background's included, with M the sum of
    m over the new classes: the old model keeps what the localizer leaves it. For an old model that is sure of itself,
    as those of softmax cross-entropy are, where it calls new things an old class.

    With a `prior` p of the new classes, from any other source, and its weight b, m is mixed with it before h, for new
    n and the background; y are the image-level labels, M stays that of the gated softmax::

        m_n <- (1 - b) m_n + b p_n y_n        m_0 <- (1 - b) m_0 + b (1 - max_n p_n y_n)

    WILSON (arXiv 2112.01882), Eq. 5 and 6; gating before the arg-max and the minimum as in the published code.
    Pass labels of all ones for the ungated form of the paper.

    Args:
        localizer_scores: scores of the localizer in eval mode `(B, C, H, W)`, floating.
        old_logits: logits of the old model `(B, O, H, W)`, 1 <= O <= C, floating.
        image_labels: `(B, C-1)`, no background column; bool, integer or floating, 0 or 1. Old classes are 0 unless
            labels for all classes are given.
        alpha: weight of the hard labels, 0..1.
        background: "min", or a weight b in 0..1 for q^_0 = (1 - b) omega_0 + b q_0.
        old_yields: whether old classes give way where the localizer sees a new one.
        prior: maps of the N = C - O new classes `(B, N, H, W)`, floating, 0..1; those of classes without a label do
            not matter. None to use the localizer alone.
        prior_weight: weight b of the prior, 0..1; given where `prior` is.

    Returns:
        Targets q^ `(B, C, H, W)` and image weights g `(B,)`, float64 if an input is, else float32. g is 1 if q has a
        pixel above 0 of exactly the new classes that the image is labelled with, else 0.

    Raises:
        TypeError: scores, logits or the prior are not floating.
        ValueError: shapes do not match, O > C, alpha, background or prior_weight is outside 0..1, background is another
            word, or one of prior and prior_weight comes without the other.

    Not differentiable: the targets are constants.
    """
    constants = _checked(
        MERGE, localizer_scores, old_logits, image_labels, alpha, background, old_yields, prior, prior_weight
    )  # fmt: skip
    if under_transform():
        return reference.merge_pseudo_labels(
            localizer_scores, old_logits, image_labels,
            alpha=alpha, background=background, old_yields=old_yields, prior=prior, prior_weight=prior_weight,
        )  # fmt: skip
    return _merge(*constants)


@_registry.op("the two above in one", gradient_to="logits")
def pseudo_label_loss(
    logits: Tensor,
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    *,
    alpha: float = 0.5,
    background: float | str = "min",
    old_yields: bool = False,
    prior: Tensor | None = None,
    prior_weight: float | None = None,
) -> Tensor:
    """:func:`soft_margin_loss` of the logits against :func:`merge_pseudo_labels`, in one op (SEG).

    WILSON (arXiv 2112.01882), Eq. 5 to 7: sum_b g_b l_b / (sum_b g_b + 1e-5).

    Args:
        logits: segmentation logits s `(B, C, H, W)`; float64, float32, bfloat16 or float16, any strides.
        localizer_scores: scores of the localizer in eval mode `(B, C, H, W)`. Taken as constant.
        old_logits: logits of the old model `(B, O, H, W)`, 1 <= O <= C. Taken as constant.
        image_labels: `(B, C-1)`, no background column; bool, integer or floating, 0 or 1.
        alpha: weight of the hard labels, 0..1.
        background: "min", or the weight of the localizer's background, 0..1.
        old_yields: whether old classes give way where the localizer sees a new one.
        prior: maps of the N = C - O new classes `(B, N, H, W)`, floating, 0..1, that the pseudo-labels are mixed with.
            Taken as constant.
        prior_weight: weight of the prior, 0..1; given where `prior` is.

    Returns:
        The loss, a scalar; float64 if an input is, else float32. 0 for an empty batch.

    Raises:
        TypeError: scores, logits or the prior are not floating.
        ValueError: shapes do not match, O > C, alpha, background or prior_weight is outside 0..1, background is another
            word, or one of prior and prior_weight comes without the other.

    Differentiable once with respect to `logits`.
    """
    if under_transform():
        return reference.pseudo_label_loss(
            logits, localizer_scores, old_logits, image_labels,
            alpha=alpha, background=background, old_yields=old_yields, prior=prior, prior_weight=prior_weight,
        )  # fmt: skip
    return pseudo_label_loss_and_factor(
        logits, localizer_scores, old_logits, image_labels,
        alpha=alpha, background=background, old_yields=old_yields, prior=prior, prior_weight=prior_weight,
    )[0]  # fmt: skip


def pseudo_label_loss_and_factor(
    logits: Tensor,
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    *,
    alpha: float = 0.5,
    background: float | str = "min",
    old_yields: bool = False,
    prior: Tensor | None = None,
    prior_weight: float | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`pseudo_label_loss` for a batch that several processes share: each must know which images count.

    Args:
        logits, localizer_scores, old_logits, image_labels, alpha, background, old_yields, prior, prior_weight: as for
            :func:`pseudo_label_loss`.

    Returns:
        The loss over this process's images, and the factor g_b / (sum_b g_b + 1e-5) / P of each image `(B,)`. An image
        counts where its factor is above 0.

    Differentiable once with respect to `logits`, through the loss.
    """
    _checks.scores(LOSS, "logits", logits)
    constants = _checked(
        LOSS, localizer_scores, old_logits, image_labels, alpha, background, old_yields, prior, prior_weight,
        logits=logits,
    )  # fmt: skip
    _checks.same_shape(LOSS, "localizer_scores", localizer_scores, "logits", logits)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _PseudoLabelLoss.apply(logits, *constants)
    return _loss_forward(logits.detach(), *constants, False)[:2]

"""Pooling of the localizer's scores into one score per image and class (CLS)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks, _library, _registry, reference
from ._autograd import first_order, under_transform

__all__ = ["ngwp_focal_pool"]

OP = "ngwp_focal_pool"


@_registry.raw("ngwp_focal_pool")
def _forward(scores: Tensor, eps: float, gamma: float, lam: float, focal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """pooled, mass S and score T / (eps + S), all (B, C)."""
    _library.note_reference(OP, scores)
    z = scores.to(reference.accumulate(scores))
    pooled = reference.ngwp_focal_pool(z, eps=eps, gamma=gamma, lam=lam, focal=focal)
    m = z.softmax(1)
    mass = m.flatten(2).sum(2)
    return pooled, mass, (m * reference.counted_scores(z)).flatten(2).sum(2) / (eps + mass)


@torch.library.register_fake(_forward)
def _(scores: Tensor, *options: object) -> tuple[Tensor, Tensor, Tensor]:
    pooled = scores.new_empty(scores.shape[:2], dtype=reference.accumulate(scores))
    return pooled, torch.empty_like(pooled), torch.empty_like(pooled)


@_registry.raw("ngwp_focal_pool_backward")
def _backward(
    grad_pooled: Tensor,
    scores: Tensor,
    mass: Tensor,
    score: Tensor,
    eps: float,
    gamma: float,
    lam: float,
    focal: bool,
) -> Tensor:
    """dL/dz = m ((A + B z) - sum_k m_k (A_k + B_k z_k) + B), with A = dL/dS at fixed T and B = dL/dT per class."""
    _library.note_reference(OP, scores)
    z = scores.to(mass.dtype)
    pixels = z.shape[2] * z.shape[3]
    slope = -score / (eps + mass)
    if focal:
        share = (mass / pixels).clamp(max=1)
        rest = 1 - share
        slope = slope + (rest**gamma / (lam + share) - gamma * rest ** (gamma - 1) * (lam + share).log()) / pixels * (
            mass < pixels
        )
    a = (grad_pooled * slope)[:, :, None, None]
    b = (grad_pooled / (eps + mass))[:, :, None, None]
    m = z.softmax(1)
    inner = a + b * reference.counted_scores(z)
    grad = m * (inner - (m * inner).sum(1, keepdim=True) + b)
    return torch.empty_like(scores).copy_(grad)


@torch.library.register_fake(_backward)
def _(grad_pooled: Tensor, scores: Tensor, *others: object) -> Tensor:
    return torch.empty_like(scores)


class _NgwpFocalPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, eps: float, gamma: float, lam: float, focal: bool) -> Tensor:
        pooled, mass, score = _forward(scores, eps, gamma, lam, focal)
        ctx.save_for_backward(scores, mass, score)
        ctx.options = (eps, gamma, lam, focal)
        return pooled

    @staticmethod
    def backward(ctx: Any, grad_pooled: Tensor) -> tuple[Tensor, None, None, None, None]:
        scores, mass, score = ctx.saved_tensors
        grad = _backward(grad_pooled.detach(), scores.detach(), mass, score, *ctx.options)
        return first_order(OP, grad, scores), None, None, None, None


@_registry.op(
    "normalised global weighted pooling and focal penalty: one score per image and class (Eq. 1, 2)",
    gradient_to="scores",
)
def ngwp_focal_pool(
    scores: Tensor, *, eps: float = 1.0, gamma: float = 3.0, lam: float = 0.01, focal: bool = True
) -> Tensor:
    """Normalised global weighted pooling plus the focal penalty: the localizer's score of each class in each image.

    With m the softmax of the scores z over classes, S = sum_i m_i and T = sum_i m_i z_i over the P pixels::

        pooled = T / (eps + S) + (1 - S/P)^gamma * log(lam + S/P)

    WILSON (arXiv 2112.01882), Eq. 1 and 2; `eps` is 1 as in the published code. The class maximises `pooled` by
    covering the pixels that it explains; the second term keeps it from shrinking to a few of them.

    Args:
        scores: localizer scores z `(B, C, H, W)`, background first; float64, float32, bfloat16 or float16, any strides.
        eps: added to S, > 0.
        gamma: power of the focal penalty, >= 1.
        lam: added to S/P inside the logarithm, > 0.
        focal: add the focal penalty.

    Returns:
        Pooled scores `(B, C)`, float64 for float64 scores, else float32. Meant for binary cross-entropy with logits.

    Raises:
        TypeError: scores are not floating.
        ValueError: scores are not `(B, C, H, W)` or C, H or W is 0; eps or lam is not positive; gamma is under 1.

    Differentiable once with respect to `scores`, through the softmax in both terms.
    """
    _checks.scores(OP, "scores", scores)
    _checks.positive(OP, eps=eps, lam=lam)
    if not gamma >= 1:
        raise ValueError(f"{OP}: gamma must be at least 1, got {gamma!r}")
    if under_transform():
        return reference.ngwp_focal_pool(scores, eps=eps, gamma=gamma, lam=lam, focal=focal)
    options = (float(eps), float(gamma), float(lam), bool(focal))
    if torch.is_grad_enabled() and scores.requires_grad:
        return _NgwpFocalPool.apply(scores, *options)
    return _forward(scores.detach(), *options)[0]

"""One-versus-rest logits of a model that was trained by softmax cross-entropy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks, _library, _registry, reference
from ._autograd import first_order, under_transform

__all__ = ["one_versus_rest"]

OP = "one_versus_rest"


@_registry.raw("one_versus_rest")
def _forward(logits: Tensor) -> Tensor:
    _library.note_reference(OP, logits)
    return torch.empty_like(logits).copy_(reference.one_versus_rest(logits))


@torch.library.register_fake(_forward)
def _(logits: Tensor) -> Tensor:
    return torch.empty_like(logits)


@_registry.raw("one_versus_rest_backward")
def _backward(grad: Tensor, logits: Tensor) -> Tensor:
    """g_j - sum_{c != j} g_c exp(s_j) / sum_{k != c} exp(s_k); the top class's share is a softmax over its others."""
    _library.note_reference(OP, logits)
    dtype = reference.accumulate(grad, logits)
    g, s = grad.to(dtype), logits.to(dtype)
    top = torch.arange(s.shape[1], device=s.device)[:, None, None] == s.argmax(1, keepdim=True)
    e = (s - s.amax(1, keepdim=True)).exp()
    h = (g / (e.sum(1, keepdim=True) - e)).masked_fill(top, 0)
    others = s.masked_fill(top, -torch.inf)
    shares = others.softmax(1).masked_fill((others == -torch.inf).all(1, keepdim=True), 0)
    derivative = g - e * (h.sum(1, keepdim=True) - h) - (g * top).sum(1, keepdim=True) * shares
    return torch.empty_like(logits).copy_(derivative)


@torch.library.register_fake(_backward)
def _(grad: Tensor, logits: Tensor) -> Tensor:
    return torch.empty_like(logits)


class _OneVersusRest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return _forward(logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        return first_order(OP, _backward(grad.detach(), logits.detach()), logits)


@_registry.op("logits whose sigmoid is the softmax", gradient_to="logits")
def one_versus_rest(logits: Tensor) -> Tensor:
    """Logits of each class against all others: their sigmoid is the softmax of `logits`.

    A model trained by softmax cross-entropy says p = softmax(s). What takes the sigmoid of logits, as the losses here
    do, reads it through::

        l_c = log p_c - log(1 - p_c) = s_c - log sum_{k != c} exp(s_k)

    Finite for finite logits, however sure the model is: 1 - p_c, which rounds to 0, is never taken.

    Args:
        logits: softmax logits s `(B, C, H, W)`, C >= 2; float64, float32, bfloat16 or float16, any strides.

    Returns:
        Logits l `(B, C, H, W)` in the dtype of `logits`. A class that is ruled out (-inf) has -inf, the only one left
        +inf; NaN where the softmax is.

    Raises:
        TypeError: logits are not floating.
        ValueError: logits are not `(B, C, H, W)`, a dimension but the batch is empty, or there is one class.

    Differentiable once with respect to `logits`.
    """
    _checks.scores(OP, "logits", logits)
    if logits.shape[1] < 2:
        raise ValueError(
            f"{OP}: logits must be (B, C, H, W) with C >= 2, got shape {tuple(logits.shape)}; "
            "one class has no others to be told from"
        )
    if under_transform():
        return reference.one_versus_rest(logits)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _OneVersusRest.apply(logits)
    return _forward(logits.detach())

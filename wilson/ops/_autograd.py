"""What the autograd Functions of all ops share.

A backward has one of two shapes. Where the forward has the parts of the derivative at hand and would need several maps
to make them again, it returns the unnormalised derivative (within -1..1, so that float16 keeps it), and backward
multiplies that by factor and incoming gradient: `pseudo_label_loss` and the losses on upsampled logits. Where the
derivative takes one map and its exponentials, backward makes it again, and nothing is stored but small statistics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _RefuseSecondDerivative(torch.autograd.Function):
    """The identity on a gradient; differentiating it again raises.

    `once_differentiable` is not enough: it cuts the graph without a word when the incoming gradient needs none, as is
    the case for a scalar loss, and a gradient penalty would be silently constant.
    """

    @staticmethod
    def forward(ctx: Any, grad: Tensor, wrt: Tensor, op: str) -> Tensor:
        ctx.op = op
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[None, None, None]:
        raise RuntimeError(
            f"{ctx.op}: gradients of gradients are not implemented; "
            f"use wilson.ops.reference.{ctx.op}, which is differentiable any number of times"
        )


def first_order(op: str, grad: Tensor, wrt: Tensor) -> Tensor:
    """`grad` with respect to `wrt`, refusing to be differentiated again (only under create_graph is anything added)."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return grad
    return _RefuseSecondDerivative.apply(grad, wrt, op)

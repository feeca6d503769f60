"""What the autograd Functions of all ops share.

An op with a gradient has one autograd Function, whose forward calls the registered op. The gradient goes to the first
argument. Backward has one of two shapes:

- Recomputed. The Function saves the inputs, and the registered `<op>_backward` works out the derivative again. This is
  for derivatives that need little more than inputs which stay in memory anyway: to keep one would cost another map.
- Stored. The registered op also returns the derivative where one is asked for, and backward multiplies it by a factor
  (`scaled`). This is for derivatives whose parts are dear and at hand in the forward alone: pseudo-labels merged from
  three inputs, or maps at the image's size, of which only their sum at feature resolution is kept. Without a factor
  sigmoid(s) - q^ lies within -1..1; divided by B*P it would be lost in float16.

The product is taken in the accumulation dtype and out of place, so that a second backward gives the same bits. PyTorch
applies a factor that is one number; `pseudo_label_loss_backward` applies one factor to each image, in one launch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def under_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) is at work.

    The reference serves them: it has all their rules, also for gradients of gradients and a dimension that vmap adds.
    Functions with a `setup_context` of their own would cost every call 10 us, which the transforms alone need.
    """
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


class _RefuseSecondDerivative(torch.autograd.Function):
    """The identity on a gradient; differentiating it again raises.

    `once_differentiable` is not enough. It cuts the graph without a word when the incoming gradient needs no gradient,
    as that of a scalar loss; a gradient penalty would then be constant, and nobody would know.
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


def scaled(derivative: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A stored derivative times `factor`, which is in the accumulation dtype; rounded to `dtype` once."""
    return (derivative * factor).to(dtype)

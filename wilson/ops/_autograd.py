"""What the autograd Functions of all ops share.

Each op differentiable in its first argument has one Function, whose forward calls the registered op. Its backward has
one of two shapes:

- Recomputed: the inputs are saved, and the registered `<op>_backward` works the derivative out of them. So it is where
  the derivative follows from inputs that are in memory anyway: keeping it would cost another map as large as they are.
- Stored: the registered op also returns the derivative, if one is asked for, and backward multiplies it (`scaled`). So
  it is where the forward has parts at hand that are dear to work out again: the merged targets of three inputs, or
  maps at the image's size, whose derivative is as small as the logits. What is stored is the derivative of the plain
  sum, sigmoid(s) - q^ or its sum over the pixels of the image: divided by B*P it would vanish in float16.

The factor of a stored derivative and the incoming gradient meet in the accumulation dtype. They multiply it out of
place, so that a second backward gives the same bits. Where the factor is one number, PyTorch multiplies; where each
image has its own, `pseudo_label_loss_backward` does, in one launch.
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


def scaled(derivative: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A stored derivative times `factor`, which is in the accumulation dtype; rounded to `dtype` once."""
    return (derivative * factor).to(dtype)

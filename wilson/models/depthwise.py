"""Dilated depthwise convolutions that learn quickly on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DilatedDepthwise(nn.Conv2d):
    """A depthwise convolution of stride 1 with dilation, whose gradients take the quick ways of PyTorch's CPU kernels.

    oneDNN computes these gradients in its general loop: for 1152 channels of 5 x 5, dilated to 7 x 7 pixels, a batch of
    16 took one core 52 ms. The gradient of the input is such a convolution itself, with the kernel turned by half, and
    that of the weight a sum of products for each place of the kernel: together 5 ms. Elsewhere, and in mixed precision,
    it is an `nn.Conv2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        quick = input.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        if not quick or torch.compiler.is_compiling():
            return super().forward(input)
        output = _Convolution.apply(input, self.weight, self.padding, self.dilation)
        return output if self.bias is None else output + self.bias[:, None, None]


def quicken(module: nn.Module) -> None:
    """Make the dilated depthwise convolutions of a network :class:`DilatedDepthwise`; its tensors and names stay."""
    for conv in module.modules():
        if type(conv) is nn.Conv2d and _fits(conv):
            conv.__class__ = DilatedDepthwise


def _fits(conv: nn.Conv2d) -> bool:
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    plain = conv.stride == (1, 1) and max(conv.dilation) > 1 and conv.padding_mode == "zeros"
    if not (depthwise and plain and isinstance(conv.padding, tuple)):
        return False
    reach = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return all(p <= r for p, r in zip(conv.padding, reach, strict=True))


class _Convolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, padding: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
        return F.conv2d(x, weight, None, 1, padding, dilation, len(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.padding, ctx.dilation = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        (rows, columns), (down, right) = ctx.padding, ctx.dilation
        height, width = weight.shape[2:]
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            padding = (down * (height - 1) - rows, right * (width - 1) - columns)
            to_x = F.conv2d(grad, weight.flip(2, 3), None, 1, padding, ctx.dilation, len(weight))
        if ctx.needs_input_grad[1]:
            padded = F.pad(x.contiguous(memory_format=torch.channels_last), (columns, columns, rows, rows))
            h, w = grad.shape[2:]
            # One for all places, as fresh memory costs more than the products; not where these have gradients, too
            products = None if torch.is_grad_enabled() else torch.empty_like(grad)
            sums = [
                torch.mul(grad, padded[:, :, i : i + h, j : j + w], out=products).sum((0, 2, 3))
                for i in range(0, down * height, down)
                for j in range(0, right * width, right)
            ]
            to_weight = torch.stack(sums, 1).view_as(weight)
        return to_x, to_weight, None, None

"""What the launchers share: dtypes, layouts and the device that a kernel starts on."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import triton
import triton.language as tl
from torch import Tensor


def accumulator(*tensors: Tensor | None) -> tuple[torch.dtype, tl.dtype]:
    """What a kernel computes in: float64 if any of its inputs is, else float32."""
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return (torch.float64, tl.float64) if double else (torch.float32, tl.float32)


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be the tensor's. Does nothing for a CPU tensor."""
    return torch.cuda.device_of(tensor)


def strides(tensor: Tensor) -> tuple[int, int, int, int]:
    """Of batch, class, row and pixel of a (B, C, H, W) tensor, in elements."""
    batch, channel, row, pixel = tensor.stride()
    height, width = tensor.shape[2:]
    if width == 1:  # the stride of a side of length 1 means nothing; the rows are the pixels
        pixel = row if height > 1 else 1
    return batch, channel, row, pixel


def linear(*maps: Tensor) -> bool:
    """Whether pixel p of all these (B, C, H, W) tensors lies at p * pixel stride; else at
    (p // W) * row stride + (p % W) * pixel stride, a division that kernels save where they can."""
    return all(1 in m.shape[2:] or m.stride(2) == m.shape[3] * m.stride(3) for m in maps)


def numbers(flags: Tensor) -> Tensor:
    """Image-level labels as a kernel reads them: bool as the bytes that it is stored in."""
    return flags.view(torch.uint8) if flags.dtype == torch.bool else flags


def class_block(classes: int, most: int) -> int:
    """Classes that a program takes at a time: all, rounded up to a power of two, or `most`."""
    return min(most, triton.next_power_of_2(classes))

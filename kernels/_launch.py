"""What the launchers share: dtypes, layouts and the device that a kernel starts on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor


def accumulator(tensor: Tensor) -> tuple[torch.dtype, tl.dtype]:
    """What a kernel computes in: float64 for float64 inputs, float32 for all others."""
    return (torch.float64, tl.float64) if tensor.dtype == torch.float64 else (torch.float32, tl.float32)


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be the tensor's. Does nothing for a CPU tensor."""
    return torch.cuda.device_of(tensor)


class MapLayout(NamedTuple):
    """How the pixels of a (B, C, H, W) tensor lie: pixel p at (p // width) * row + (p % width) * pixel elements.

    If `linear`, that is p * pixel, and kernels save the division.
    """

    batch: int
    channel: int
    row: int
    pixel: int
    width: int
    linear: bool


def map_layout(tensor: Tensor) -> MapLayout:
    batch, channel, row, pixel = tensor.stride()
    height, width = tensor.shape[2:]
    if width == 1:  # the stride of a side of length 1 means nothing; the rows are the pixels
        pixel, width, height = (row if height > 1 else 1), height, 1
    linear = height == 1 or row == width * pixel
    return MapLayout(batch, channel, row, pixel, width, linear)

"""What the launchers share: dtypes, layouts, tiles, and the device that a kernel starts on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Map(NamedTuple):
    """A (B, C, H, W) tensor as a kernel takes it: the strides are in elements, those of H and W are row and pixel."""

    data: Tensor
    batch: int
    channel: int
    row: int
    pixel: int


class Matrix(NamedTuple):
    """A (B, C) tensor as a kernel takes it."""

    data: Tensor
    batch: int
    channel: int


def map_of(tensor: Tensor) -> Map:
    """A (B, C, H, W) tensor, or the (B, H, W) of a label map."""
    tensor = tensor if tensor.dim() == 4 else tensor[:, None]
    batch, channel, row, pixel = tensor.stride()
    height, width = tensor.shape[2:]
    if width == 1:  # the stride of a side of length 1 means nothing; the rows are the pixels
        pixel = row if height > 1 else 1
    return Map(tensor, batch, channel, row, pixel)


def matrix_of(tensor: Tensor) -> Matrix:
    """A (B, C) tensor; kernels read bool as the bytes that it is stored in."""
    return Matrix(tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor, *tensor.stride())


def linear(*maps: Map) -> bool:
    """Whether pixel p of every map lies at p * its pixel stride.

    If not, it lies at (p // W) * row stride + (p % W) * pixel stride, a division that kernels save where they can.
    """
    return all(1 in m.data.shape[2:] or m.row == m.data.shape[3] * m.pixel for m in maps)


def accumulator(*tensors: Tensor | None) -> tuple[torch.dtype, tl.dtype]:
    """What a kernel computes in: float64 if any of its inputs is, else float32."""
    double = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return (torch.float64, tl.float64) if double else (torch.float32, tl.float32)


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device, which need not be the tensor's. Does nothing for a CPU tensor."""
    return torch.cuda.device_of(tensor)


def class_block(classes: int, most: int) -> int:
    """Classes that a program takes at a time: all, rounded up to a power of two, or `most`."""
    return min(most, triton.next_power_of_2(classes))


def tile_for(
    classes: int, pixels: int, *, most: int, held: int = 0, per_thread: int = 16, eight_warps_above: int | None = None
) -> dict[str, int]:
    """The tile of scores that a program holds at a time, and its warps, by the names that launches give them.

    Args:
        classes: of the map.
        pixels: that one program may take; it takes at least 32, of which some may lie outside.
        most: classes at a time, if the map has more than `held`.
        held: classes that are taken all at once.
        per_thread: scores that a thread holds.
        eight_warps_above: more classes at a time than these are spread over 8 warps instead of 4.
    """
    block_c = class_block(classes, held if classes <= held else most)
    warps = 4 if eight_warps_above is None or block_c <= eight_warps_above else 8
    block_p = min(32 * warps * per_thread // block_c, max(32, triton.next_power_of_2(pixels)))
    return {"BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": warps}

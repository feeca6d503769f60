"""Refining masks by the image (PAMR) in Triton. Araslanov and Roth, CVPR 2020, as in WILSON's published code.

A pixel has 8 neighbours at each dilation, their coordinates clamped to the image. Its affinities to them are worked out
once; an iteration gives it the mean of their masks, weighted by the affinities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, class_block, map_of, matrix_of, on_device_of
from ._math import aligned_corners, steepness
from ._tiles import class_rows, load_gates

# One pixel per thread, so that its affinities and the sums of its classes are in the registers of one thread.
# Two warps: enough programs for all processors at 24 maps of 32 x 32.
PAMR_PIXELS = 64
PAMR_WARPS = 2
PAMR_CLASSES = 32  # as many sums per thread; more classes read the affinities again, from the cache


@triton.jit
def _neighbour(m, y, x, H, W, DISTANCE: tl.constexpr, j):
    """How far neighbour j of 8 lies behind the first pixel: row by row, the centre left out."""
    k = j + j // 4
    row = tl.minimum(tl.maximum(y + (k // 3 - 1) * DISTANCE, 0), H - 1)
    pixel = tl.minimum(tl.maximum(x + (k % 3 - 1) * DISTANCE, 0), W - 1)
    return row.to(tl.int64) * m.row + pixel.to(tl.int64) * m.pixel


@triton.jit
def _shown(image_labels, b, c, C, ACC: tl.constexpr):
    """Which of the classes c are to be refined: those that the image shows, or all if nobody says which."""
    shown = c < C
    if image_labels is not None:
        shown = shown & (load_gates(image_labels, b, c, C, ACC) != 0)
    return shown


@triton.jit
def _pamr_affinity_kernel(
    image,  # (B, 3, H, W), any strides
    affinity,  # (B, 8 COUNT, P)
    H,
    W,
    tiles,
    DILATIONS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    y, x = p // W, p % W
    channel = tl.arange(0, 4)  # three colours; blocks are powers of two
    inside = (channel < 3)[:, None] & (p < H * W)[None, :]
    colours = class_rows(image, b, channel)
    at = y.to(tl.int64) * image.row + x.to(tl.int64) * image.pixel
    centre = tl.load(colours + at[None, :], mask=inside, other=0.0).to(ACC)

    # Deviation of the neighbours and, once per dilation, the centre. Taken from the centre, differences of close
    # colours keep their digits, and an even neighbourhood gives 0.
    sum = tl.zeros((4, BLOCK_P), ACC)
    sum_of_squares = tl.zeros((4, BLOCK_P), ACC)
    for i in tl.static_range(COUNT):
        for j in range(8):
            at = _neighbour(image, y, x, H, W, DILATIONS[i], j)
            d = tl.load(colours + at[None, :], mask=inside, other=0.0).to(ACC) - centre
            sum += d
            sum_of_squares += d * d
    steep = steepness(sum, sum_of_squares, 9 * COUNT)

    peak = tl.full((BLOCK_P,), -float("inf"), ACC)
    norm = tl.zeros((BLOCK_P,), ACC)
    for i in tl.static_range(COUNT):
        for j in range(8):
            at = _neighbour(image, y, x, H, W, DILATIONS[i], j)
            d = tl.load(colours + at[None, :], mask=inside, other=0.0).to(ACC) - centre
            k = tl.sum(tl.abs(d) * steep, axis=0)
            higher = tl.maximum(peak, k)
            norm = norm * tl.exp(peak - higher) + tl.exp(k - higher)
            peak = higher
    weight = 1.0 / norm
    plane = tl.zeros((), tl.int64) + H * W
    to = affinity + b * (8 * COUNT) * plane + p
    for i in tl.static_range(COUNT):
        for j in range(8):
            at = _neighbour(image, y, x, H, W, DILATIONS[i], j)
            d = tl.load(colours + at[None, :], mask=inside, other=0.0).to(ACC) - centre
            k = tl.sum(tl.abs(d) * steep, axis=0)
            tl.store(to + (8 * i + j) * plane, tl.exp(k - peak) * weight, mask=p < H * W)


@triton.jit
def _pamr_resize_kernel(
    mask,  # (B, C, h, w), any strides
    image_labels,  # (B, C - 1), or None
    resized,  # (B, C, P)
    C,
    small_height,
    small_width,
    H,
    W,
    tiles,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    top, bottom, down = aligned_corners(p // W, small_height, H, ACC)
    left, right, along = aligned_corners(p % W, small_width, W, ACC)
    top, bottom, left, right = top * mask.row, bottom * mask.row, left * mask.pixel, right * mask.pixel
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = _shown(image_labels, b, c, C, ACC)[:, None] & (p < H * W)[None, :]
    rows = class_rows(mask, b, c)
    first = tl.load(rows + (top + left)[None, :], mask=inside, other=0.0).to(ACC) * (1.0 - along)[None, :]
    first += tl.load(rows + (top + right)[None, :], mask=inside, other=0.0).to(ACC) * along[None, :]
    second = tl.load(rows + (bottom + left)[None, :], mask=inside, other=0.0).to(ACC) * (1.0 - along)[None, :]
    second += tl.load(rows + (bottom + right)[None, :], mask=inside, other=0.0).to(ACC) * along[None, :]
    value = first * (1.0 - down)[None, :] + second * down[None, :]
    tl.store(resized + (b * C + c[:, None]) * (tl.zeros((), tl.int64) + H * W) + p[None, :], value, mask=inside)


@triton.jit
def _pamr_step_kernel(
    mask,  # (B, C, H, W), any strides
    image_labels,  # (B, C - 1), or None
    affinity,  # (B, 8 COUNT, P)
    refined,  # (B, C, P)
    C,
    H,
    W,
    tiles,
    DILATIONS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    y, x = p // W, p % W
    plane = tl.zeros((), tl.int64) + H * W
    weights = affinity + b * (8 * COUNT) * plane + p
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    shown = _shown(image_labels, b, c, C, ACC)
    inside = shown[:, None] & (p < H * W)[None, :]
    rows = class_rows(mask, b, c)
    mean = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    if tl.sum(shown.to(tl.int32), axis=0) > 0:
        for i in tl.static_range(COUNT):
            for j in range(8):
                a = tl.load(weights + (8 * i + j) * plane, mask=p < H * W, other=0.0)
                at = _neighbour(mask, y, x, H, W, DILATIONS[i], j)
                mean += a[None, :] * tl.load(rows + at[None, :], mask=inside, other=0.0).to(ACC)
    to = refined + (b * C + c[:, None]) * plane + p[None, :]
    tl.store(to, mean, mask=(c < C)[:, None] & (p < H * W)[None, :])


def pamr(image: Tensor, mask: Tensor, image_labels: Tensor | None, iterations: int, dilations: Sequence[int]) -> Tensor:
    """The refined mask (B, C, H, W) in the accumulation dtype."""
    batch, _, height, width = image.shape
    classes, small = mask.shape[1], mask.shape[2:]
    dtype, acc = accumulator(image, mask)
    refined = mask.new_empty((batch, classes, height, width), dtype=dtype)
    if batch == 0:
        return refined
    neighbours = {"DILATIONS": tuple(int(d) for d in dilations), "COUNT": len(dilations)}
    affinity = mask.new_empty((batch, 8 * len(dilations), height * width), dtype=dtype)
    tiles = triton.cdiv(height * width, PAMR_PIXELS)
    block = {"BLOCK_P": PAMR_PIXELS, "ACC": acc, "num_warps": PAMR_WARPS}
    # With labels few classes are left of an image: a program each, which leaves at once if its class is not shown.
    block_c = class_block(classes, PAMR_CLASSES) if image_labels is None else 1
    shown = None if image_labels is None else matrix_of(image_labels)
    grid = (batch * tiles, triton.cdiv(classes, block_c))
    resized = small != image.shape[2:]
    other = torch.empty_like(refined) if iterations > 1 or resized else refined
    with on_device_of(image):
        _pamr_affinity_kernel[(batch * tiles,)](map_of(image), affinity, height, width, tiles, **neighbours, **block)
        # The last iteration ends in `refined`, the one before in `other`, and so on.
        buffers = (refined, other) if iterations % 2 else (other, refined)
        if resized:
            _pamr_resize_kernel[grid](
                map_of(mask), shown, buffers[1], classes, *small, height, width, tiles, BLOCK_C=block_c, **block
            )
            mask = buffers[1]
        for k in range(iterations):
            to = buffers[k % 2]
            _pamr_step_kernel[grid](
                map_of(mask), shown, affinity, to, classes, height, width, tiles, BLOCK_C=block_c, **neighbours, **block
            )
            mask = to
    return refined

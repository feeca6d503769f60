"""Refining masks by the image in Triton: PAMR (Araslanov and Roth, CVPR 2020, as in WILSON's published code), and PAR
(Ru et al., CVPR 2022), which differ in their affinities alone.

A pixel has 8 neighbours at each dilation, their coordinates clamped to the image. Its affinities to them are worked out
once; an iteration gives it the mean of their masks, weighted by the affinities.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, class_block, map_of, matrix_of, on_device_of
from ._math import aligned_corners, par_similarity, steepness
from ._tiles import load_gates

# Affinities: a lane has a pixel, and a warp one neighbour at each dilation, which it loads once.
AFFINITY_PIXELS = 32
# Refining: a program has all pixels of a few classes, a thread one at a time. Each load brings the classes of one
# neighbour, 16 bytes, so that its affinity and place serve all of them.
REFINE_PIXELS = 512
REFINE_CLASSES = 4


@triton.jit
def _place(start, distance, step, size):
    """Which of `size` rows or columns lies `step` distances behind one, coordinates clamped to the image."""
    return tl.minimum(tl.maximum(start + step * distance, 0), size - 1)


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
    NEARNESS: tl.constexpr,  # what PAR adds at each dilation: beside the pixel, at a corner. None for PAMR
    BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    pixel = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    p = tl.minimum(pixel, H * W - 1)
    y, x = p // W, p % W
    n = tl.arange(0, BLOCK_N)
    distance = tl.full((BLOCK_N,), DILATIONS[0], tl.int32)
    for i in tl.static_range(1, COUNT):
        distance = tl.where(n // 8 == i, DILATIONS[i], distance)
    k = n % 8 + n % 8 // 4  # row by row, the centre left out
    row = _place(y[None, :], distance[:, None], (k // 3 - 1)[:, None], H).to(tl.int64)
    column = _place(x[None, :], distance[:, None], (k % 3 - 1)[:, None], W).to(tl.int64)
    there = (n < 8 * COUNT)[:, None]
    similarity = tl.zeros((BLOCK_N, BLOCK_P), ACC)
    for channel in tl.static_range(3):
        colours = image.data + b * image.batch + (tl.zeros((), tl.int64) + channel) * image.channel
        centre = tl.load(colours + y.to(tl.int64) * image.row + x.to(tl.int64) * image.pixel).to(ACC)
        neighbours = tl.load(colours + row * image.row + column * image.pixel, mask=there, other=0.0).to(ACC)
        # Taken from the centre, differences of close colours keep their digits, and an even neighbourhood gives 0.
        d = tl.where(there, neighbours - centre[None, :], 0.0)
        if NEARNESS is None:  # the centre counts in the deviation, too, once per dilation
            steep = steepness(tl.sum(d, axis=0), tl.sum(d * d, axis=0), 9 * COUNT)
            similarity += tl.abs(d) * steep[None, :]
        else:
            similarity += par_similarity(d, there, 8 * COUNT)
    similarity = tl.where(there, similarity, -float("inf"))
    e = tl.exp(similarity - tl.max(similarity, axis=0)[None, :])
    plane = tl.zeros((), tl.int64) + H * W
    to = affinity + (b * (8 * COUNT) + n[:, None]) * plane + pixel[None, :]
    share = e / tl.sum(e, axis=0)[None, :]
    if NEARNESS is not None:
        near = tl.zeros((BLOCK_N,), ACC)
        for i in tl.static_range(COUNT):
            beside = tl.full((BLOCK_N,), NEARNESS[2 * i], ACC)
            near = tl.where(n // 8 == i, tl.where(k % 2 == 0, NEARNESS[2 * i + 1], beside), near)
        share += near[:, None]
    tl.store(to, share, mask=there & (pixel < H * W)[None, :])


@triton.jit
def _resized(mask, classes, p, inside, small_height, small_width, H, W, ACC: tl.constexpr):
    """The mask (pixels, classes) at the image's size."""
    top, bottom, down = aligned_corners(p // W, small_height, H, ACC)
    left, right, along = aligned_corners(p % W, small_width, W, ACC)
    top, bottom, left, right = top * mask.row, bottom * mask.row, left * mask.pixel, right * mask.pixel
    first = tl.load(classes + (top + left)[:, None], mask=inside, other=0.0).to(ACC) * (1.0 - along)[:, None]
    first += tl.load(classes + (top + right)[:, None], mask=inside, other=0.0).to(ACC) * along[:, None]
    second = tl.load(classes + (bottom + left)[:, None], mask=inside, other=0.0).to(ACC) * (1.0 - along)[:, None]
    second += tl.load(classes + (bottom + right)[:, None], mask=inside, other=0.0).to(ACC) * along[:, None]
    return first * (1.0 - down)[:, None] + second * down[:, None]


@triton.jit
def _pamr_refine_kernel(
    mask,  # (B, C, h, w), any strides
    image_labels,  # (B, C - 1), or None
    affinity,  # (B, 8 COUNT, P)
    planes,  # (2, programs, P, BLOCK_C): the masks before and after an iteration
    refined,  # (B, C, P)
    C,
    small_height,
    small_width,
    H,
    W,
    groups,
    iterations,
    DILATIONS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    """All iterations for BLOCK_C classes of an image.

    The masks between two iterations are the program's own, so that a barrier is all it needs.
    """
    program = tl.program_id(0)
    b = (program // groups).to(tl.int64)
    k = tl.arange(0, BLOCK_C)
    c = program % groups * BLOCK_C + k
    P = H * W
    plane = tl.zeros((), tl.int64) + P
    shown = _shown(image_labels, b, c, C, ACC)
    out = refined + (b * C + c)[None, :] * plane
    if tl.sum(shown.to(tl.int32), axis=0) == 0:
        for start in range(0, P, BLOCK_P):
            p = start + tl.arange(0, BLOCK_P)
            tl.store(out + p[:, None], tl.zeros((BLOCK_P, BLOCK_C), ACC), mask=(p < P)[:, None] & (c < C)[None, :])
    else:
        source = planes + program * plane * BLOCK_C
        target = source + tl.num_programs(0) * plane * BLOCK_C
        classes = mask.data + b * mask.batch + c[None, :].to(tl.int64) * mask.channel
        for start in range(0, P, BLOCK_P):
            p = start + tl.arange(0, BLOCK_P)
            inside = (p < P)[:, None] & shown[None, :]
            value = _resized(mask, classes, p, inside, small_height, small_width, H, W, ACC)
            tl.store(source + p[:, None] * BLOCK_C + k[None, :], value, mask=(p < P)[:, None])
        for _ in range(iterations):
            tl.debug_barrier()
            for start in range(0, P, BLOCK_P):
                pixel = start + tl.arange(0, BLOCK_P)
                p = tl.minimum(pixel, P - 1)
                y, x = p // W, p % W
                weights = affinity + b * (8 * COUNT) * plane + p
                mean = tl.zeros((BLOCK_P, BLOCK_C), ACC)
                for d in tl.static_range(COUNT):
                    for j in tl.static_range(9):
                        if j != 4:  # the centre
                            row = y if j // 3 == 1 else _place(y, DILATIONS[d], j // 3 - 1, H)
                            column = x if j % 3 == 1 else _place(x, DILATIONS[d], j % 3 - 1, W)
                            a = tl.load(weights)
                            weights += plane
                            neighbour = tl.load(source + (row * W + column)[:, None] * BLOCK_C + k[None, :])
                            mean += a[:, None] * neighbour
                tl.store(target + pixel[:, None] * BLOCK_C + k[None, :], mean, mask=(pixel < P)[:, None])
            source, target = target, source
        tl.debug_barrier()
        for start in range(0, P, BLOCK_P):
            p = start + tl.arange(0, BLOCK_P)
            inside = (p < P)[:, None] & (c < C)[None, :]
            tl.store(out + p[:, None], tl.load(source + p[:, None] * BLOCK_C + k[None, :], mask=inside), mask=inside)


@functools.cache
def _nearness(dilations: tuple[int, ...]) -> tuple[float, ...]:
    """0.01 softmax of -(rho / (sigma_rho + 1e-8) / 0.3)^2 over the neighbours, of their distances rho.

    At each dilation, for one beside the pixel and for one at a corner.
    """
    rho = [distance for d in dilations for distance in (d, math.sqrt(2) * d)]  # four neighbours of each
    mean = sum(rho) / len(rho)
    variance = 4 * sum((r - mean) ** 2 for r in rho) / (4 * len(rho) - 1)
    width, nearest = 0.3 * (math.sqrt(variance) + 1e-8), min(rho)
    weights = [math.exp((nearest - r) * (nearest + r) / width**2) for r in rho]
    return tuple(0.01 * weight / (4 * sum(weights)) for weight in weights)


def pamr(image: Tensor, mask: Tensor, image_labels: Tensor | None, iterations: int, dilations: Sequence[int]) -> Tensor:
    """The refined mask (B, C, H, W) in the accumulation dtype."""
    return _refine(image, mask, image_labels, iterations, dilations, nearness=None)


def par(image: Tensor, mask: Tensor, image_labels: Tensor | None, iterations: int, dilations: Sequence[int]) -> Tensor:
    """The refined mask (B, C, H, W) in the accumulation dtype."""
    return _refine(image, mask, image_labels, iterations, dilations, nearness=_nearness(tuple(map(int, dilations))))


def _refine(
    image: Tensor,
    mask: Tensor,
    image_labels: Tensor | None,
    iterations: int,
    dilations: Sequence[int],
    nearness: tuple[float, ...] | None,
) -> Tensor:
    batch, _, height, width = image.shape
    classes = mask.shape[1]
    dtype, acc = accumulator(image, mask)
    refined = mask.new_empty((batch, classes, height, width), dtype=dtype)
    if batch == 0:
        return refined
    pixels, count = height * width, len(dilations)
    far = max(height, width)  # further out there is nothing but the border again
    neighbours = {"DILATIONS": tuple(min(int(d), far) for d in dilations), "COUNT": count}
    block_n = triton.next_power_of_2(8 * count)
    affinity = mask.new_empty((batch, 8 * count, pixels), dtype=dtype)
    tiles = triton.cdiv(pixels, AFFINITY_PIXELS)
    # With labels few classes are left of an image: a program each, which leaves at once if its class is not shown.
    block_c = class_block(classes, REFINE_CLASSES) if image_labels is None else 1
    groups = triton.cdiv(classes, block_c)
    block_p = min(REFINE_PIXELS, max(32, triton.next_power_of_2(pixels)))
    planes = mask.new_empty((2, batch * groups, pixels, block_c), dtype=dtype)
    with on_device_of(image):
        _pamr_affinity_kernel[(batch * tiles,)](
            map_of(image), affinity, height, width, tiles, BLOCK_N=block_n, BLOCK_P=AFFINITY_PIXELS, NEARNESS=nearness,
            ACC=acc, num_warps=min(8, block_n // 8), **neighbours,
        )  # fmt: skip
        _pamr_refine_kernel[(batch * groups,)](
            map_of(mask), None if image_labels is None else matrix_of(image_labels), affinity, planes, refined,
            classes, *mask.shape[2:], height, width, groups, iterations, BLOCK_C=block_c, BLOCK_P=block_p, ACC=acc,
            num_warps=block_p // 32, **neighbours,
        )  # fmt: skip
    return refined

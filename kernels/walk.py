"""Scores that walk at random and stop at edges (IRN) in Triton. Ahn et al., CVPR 2019.

A pixel is linked to half its neighbours, those below and to the right; the others are linked to it. The weights of the
links are worked out once; a step gives a pixel the mean over its links both ways.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, class_block, map_of, on_device_of

WEIGHT_PIXELS = 128
# As in PAMR: a program has all pixels of a few classes, a thread one at a time, and each load brings the classes of one
# neighbour, so that its weight and place serve all of them. With 512 threads instead of 1024 the compiler spills
# registers to make room for a second program.
WALK_PIXELS = 1024
WALK_CLASSES = 4
UNROLLED = 2  # links at a time: a thread waits for the loads of both at once. More need registers that are spilled


@triton.jit
def _columns(down, radius, W):
    """From which column on to which one half the neighbours go, so many rows down: x^2 + down^2 < radius^2."""
    reach = tl.minimum(tl.sqrt((radius * radius - down * down).to(tl.float32) - 0.5).to(tl.int32), W - 1)
    return tl.where(down == 0, 1, -reach), reach


@triton.jit
def _weight(edges, y, x, down, right, H, W, row, pixel, BETA: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr):
    """a^beta of the links from the pixels (y, x), 0 if one leads out of the map or begins there."""
    columns, side = tl.abs(right), tl.where(right < 0, -1, 1)
    there = (y >= 0) & (y + down < H) & (tl.minimum(x, x + right) >= 0) & (tl.maximum(x, x + right) < W)
    strongest = tl.full((BLOCK_P,), -float("inf"), ACC)
    for i in range(down + 1):
        for j in range(columns + 1):
            away = down * j - columns * i
            if away * away < down * down + right * right:
                at = edges + (y + i).to(tl.int64) * row + (x + side * j).to(tl.int64) * pixel
                strongest = tl.maximum(strongest, tl.load(at, mask=there, other=1.0).to(ACC))
    affinity = 1.0 - strongest
    return tl.where(affinity > 0, tl.exp(BETA * tl.log(affinity)), 0.0)


@triton.jit
def _walk_weights_kernel(
    edge,  # (B, 1, H, W), any strides
    weights,  # (B, links + 1, P): of the links, then 1 over the sum of those that begin or end in the pixel, and 1
    H,
    W,
    tiles,
    radius,
    links,
    BETA: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    y, x = p // W, p % W
    edges = edge.data + b * edge.batch
    plane = tl.zeros((), tl.int64) + H * W
    out = weights + b * (links + 1) * plane + p
    total = tl.zeros((BLOCK_P,), ACC)  # the pixel's own 1 comes last: it would swallow many of the weights one by one
    for down in range(tl.minimum(radius, H)):
        first, last = _columns(down, radius, W)
        for right in range(first, last + 1):
            weight = _weight(edges, y, x, down, right, H, W, edge.row, edge.pixel, BETA, BLOCK_P, ACC)
            total += weight
            total += _weight(edges, y - down, x - right, down, right, H, W, edge.row, edge.pixel, BETA, BLOCK_P, ACC)
            tl.store(out, weight, mask=p < H * W)
            out += plane
    tl.store(out, 1.0 / (1.0 + total), mask=p < H * W)


@triton.jit
def _walk_kernel(
    scores,  # (B, C, H, W), any strides
    edge,  # (B, 1, H, W), any strides
    weights,  # (B, links + 1, P)
    planes,  # (2, programs, P, BLOCK_C): the scores before and after a step
    walked,  # (B, C, P)
    C,
    H,
    W,
    groups,
    steps,
    radius,
    links,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    UNROLLED: tl.constexpr,
    ACC: tl.constexpr,
):
    """All steps for BLOCK_C classes of an image.

    The scores between two steps are the program's own, so that a barrier is all it needs. They lie in global memory, as
    Triton has no shared memory to address.
    """
    program = tl.program_id(0)
    b = (program // groups).to(tl.int64)
    k = tl.arange(0, BLOCK_C)
    c = program % groups * BLOCK_C + k
    P = H * W
    plane = tl.zeros((), tl.int64) + P
    source = planes + program * plane * BLOCK_C
    target = source + tl.num_programs(0) * plane * BLOCK_C
    classes = scores.data + b * scores.batch + c[None, :].to(tl.int64) * scores.channel
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        y, x = (p // W).to(tl.int64), (p % W).to(tl.int64)
        e = tl.load(edge.data + b * edge.batch + y * edge.row + x * edge.pixel, mask=p < P, other=0.0).to(ACC)
        at = classes + (y * scores.row + x * scores.pixel)[:, None]
        value = tl.load(at, mask=(p < P)[:, None] & (c < C)[None, :], other=0.0).to(ACC) * (1.0 - e)[:, None]
        tl.store(source + p[:, None] * BLOCK_C + k[None, :], value, mask=(p < P)[:, None])
    for _ in range(steps):
        tl.debug_barrier()
        for start in range(0, P, BLOCK_P):
            pixel = start + tl.arange(0, BLOCK_P)
            p = tl.minimum(pixel, P - 1)
            weight = weights + b * (links + 1) * plane + p
            total = tl.zeros((BLOCK_P, BLOCK_C), ACC)
            for down in range(tl.minimum(radius, H)):
                first, last = _columns(down, radius, W)
                for right in tl.range(first, last + 1, loop_unroll_factor=UNROLLED):
                    step = down * W + right
                    # a link that leads out of the map has a weight of 0
                    below, above = tl.minimum(p + step, P - 1), tl.maximum(p - step, 0)
                    forth = tl.load(weight)
                    back = tl.load(weight - step, mask=p >= step, other=0.0)
                    total += forth[:, None] * tl.load(source + below[:, None] * BLOCK_C + k[None, :])
                    total += back[:, None] * tl.load(source + above[:, None] * BLOCK_C + k[None, :])
                    weight += plane
            own = tl.load(source + p[:, None] * BLOCK_C + k[None, :])
            mean = (own + total) * tl.load(weight)[:, None]
            tl.store(target + pixel[:, None] * BLOCK_C + k[None, :], mean, mask=(pixel < P)[:, None])
        source, target = target, source
    tl.debug_barrier()
    out = walked + (b * C + c)[None, :] * plane
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = (p < P)[:, None] & (c < C)[None, :]
        tl.store(out + p[:, None], tl.load(source + p[:, None] * BLOCK_C + k[None, :], mask=inside), mask=inside)


def random_walk(scores: Tensor, edge: Tensor, radius: int, beta: float, steps: int) -> Tensor:
    """The scores (B, C, H, W) after the walk, in the accumulation dtype."""
    batch, classes, height, width = scores.shape
    dtype, acc = accumulator(scores, edge)
    walked = scores.new_empty(scores.shape, dtype=dtype)
    if batch == 0:
        return walked
    pixels = height * width
    reach = [min(math.isqrt(radius**2 - down**2 - 1), width - 1) for down in range(min(radius, height))]
    links = sum(2 * r + 1 for r in reach) - reach[0] - 1  # of a pixel's own row only those to the right
    weights = scores.new_empty((batch, links + 1, pixels), dtype=dtype)
    tiles = triton.cdiv(pixels, WEIGHT_PIXELS)
    block_c = class_block(classes, WALK_CLASSES)
    groups = triton.cdiv(classes, block_c)
    block_p = min(WALK_PIXELS, max(32, triton.next_power_of_2(pixels)))
    planes = scores.new_empty((2, batch * groups, pixels, block_c), dtype=dtype)
    with on_device_of(scores):
        _walk_weights_kernel[(batch * tiles,)](
            map_of(edge), weights, height, width, tiles, radius, links, BETA=beta, BLOCK_P=WEIGHT_PIXELS,
            ACC=acc, num_warps=4,
        )  # fmt: skip
        _walk_kernel[(batch * groups,)](
            map_of(scores), map_of(edge), weights, planes, walked, classes, height, width, groups, steps,
            radius, links,
            BLOCK_C=block_c, BLOCK_P=block_p, UNROLLED=UNROLLED, ACC=acc, num_warps=block_p // 32,
        )  # fmt: skip
    return walked

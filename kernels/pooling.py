"""nGWP + focal pooling (arXiv 2112.01882, Eq. 1 and 2) in Triton.

With m the softmax of the scores z over classes, S = sum_i m_i and T = sum_i m_i z_i over the P pixels of an image::

    pooled = T / (eps + S) + (1 - S/P)^gamma * log(lam + S/P)

Each program adds up a fixed run of pixels of one image. The runs are added in order, without atomics: every call and
every batch gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, class_block, linear, map_of, matrix_of, on_device_of, tile_for
from ._math import focal_penalty, focal_penalty_slope
from ._tiles import counted_scores, exp_scores, load_tile, no_peak, peak_of, softmax_of, softmax_step, store_tile

# Pixels that one program of the forward adds up, by bytes of a score. Every run costs 4 numbers per class (two written,
# two read back), which is 3 % of the bytes of the scores.
RUN = {2: 256, 4: 128, 8: 128}
# A thread holds 32 scores at a time, which leaves room for their exponentials (57 to 128 registers on sm_80 and sm_90,
# no spills).
PER_THREAD = 32
EIGHT_WARPS_ABOVE = 64
# Up to this many classes are held at once and read once. More go by in blocks and are read twice.
MAX_HELD_CLASSES = 256
BLOCK_CLASSES = 128
# Classes and runs that a program of the finish adds up at a time.
FINISH_CLASSES = 32
FINISH_RUNS = 32


@triton.jit
def _ngwp_focal_pool_fwd_kernel(
    scores,  # (B, C, H, W), any strides
    sums,  # (B, runs, 2, C): S and T of each run of pixels
    C,
    P,
    runs,
    width,
    LINEAR: tl.constexpr,
    HELD: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // runs).to(tl.int64)
    first = program % runs * RUN
    run_sums = sums + program.to(tl.int64) * 2 * C
    if HELD:
        c = tl.arange(0, BLOCK_C)
        mass = tl.zeros((BLOCK_C,), ACC)
        total = tl.zeros((BLOCK_C,), ACC)
        for start in range(0, RUN, BLOCK_P):
            p = first + start + tl.arange(0, BLOCK_P)
            z = load_tile(scores, b, c, C, p, P, width, LINEAR, ACC)
            e = exp_scores(z, peak_of(z, c, C), c, C)
            m = e * tl.where(p < P, 1.0 / tl.sum(e, axis=0), 0.0)[None, :]
            mass += tl.sum(m, axis=1)
            total += tl.sum(m * counted_scores(z), axis=1)
        tl.store(run_sums + c, mass, mask=c < C)
        tl.store(run_sums + C + c, total, mask=c < C)
    else:  # a run is one tile
        p = first + tl.arange(0, BLOCK_P)
        peak, norm = softmax_of(scores, b, C, p, P, width, LINEAR, BLOCK_C, BLOCK_P, ACC)
        weight = tl.where(p < P, 1.0 / norm, 0.0)
        for block in range(0, C, BLOCK_C):
            c = block + tl.arange(0, BLOCK_C)
            z = load_tile(scores, b, c, C, p, P, width, LINEAR, ACC)
            m = exp_scores(z, peak, c, C) * weight[None, :]
            tl.store(run_sums + c, tl.sum(m, axis=1), mask=c < C)
            tl.store(run_sums + C + c, tl.sum(m * counted_scores(z), axis=1), mask=c < C)


@triton.jit
def _ngwp_focal_pool_finish_kernel(
    sums,  # (B, runs, 2, C)
    pooled,  # (B, C), as mass and score
    mass,
    score,
    C,
    P,
    runs,
    EPS: tl.constexpr,
    GAMMA: tl.constexpr,
    LAM: tl.constexpr,
    FOCAL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ACC: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_classes = c < C
    run_mass = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    run_total = tl.zeros((BLOCK_R, BLOCK_C), ACC)
    for start in range(0, runs, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        row = sums + ((b * runs + r) * 2 * C)[:, None] + c[None, :]
        inside = (r < runs)[:, None] & in_classes[None, :]
        run_mass += tl.load(row, mask=inside, other=0.0)
        run_total += tl.load(row + C, mask=inside, other=0.0)
    S = tl.sum(run_mass, axis=0)
    value = tl.sum(run_total, axis=0) / (EPS + S)
    out = b * C + c
    tl.store(mass + out, S, mask=in_classes)
    tl.store(score + out, value, mask=in_classes)
    if FOCAL:
        value += focal_penalty(S, P, GAMMA, LAM)
    tl.store(pooled + out, value, mask=in_classes)


@triton.jit
def _slopes(
    grad_pooled, mass, score, b, c, C, P,
    EPS: tl.constexpr, GAMMA: tl.constexpr, LAM: tl.constexpr, FOCAL: tl.constexpr,
):  # fmt: skip
    """A = dL/dS at fixed T and B = dL/dT of a block of classes, so that dL/dm = A + B z."""
    in_classes = c < C
    row = grad_pooled.data + b * grad_pooled.batch + c.to(tl.int64) * grad_pooled.channel
    g = tl.load(row, mask=in_classes, other=0.0)
    S = tl.load(mass + b * C + c, mask=in_classes, other=0.0)
    by_total = 1.0 / (EPS + S)
    by_mass = -tl.load(score + b * C + c, mask=in_classes, other=0.0) * by_total
    if FOCAL:
        by_mass += focal_penalty_slope(S, P, GAMMA, LAM)
    return g * by_mass, g * by_total


@triton.jit
def _ngwp_focal_pool_bwd_kernel(
    grad_pooled,  # (B, C), any strides
    scores,  # (B, C, H, W), any strides, as grad_scores
    mass,  # (B, C), as score
    score,
    grad_scores,
    C,
    P,
    tiles,
    width,
    EPS: tl.constexpr,
    GAMMA: tl.constexpr,
    LAM: tl.constexpr,
    FOCAL: tl.constexpr,
    LINEAR: tl.constexpr,
    HELD: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    if HELD:
        c = tl.arange(0, BLOCK_C)
        A, B = _slopes(grad_pooled, mass, score, b, c, C, P, EPS, GAMMA, LAM, FOCAL)
        z = load_tile(scores, b, c, C, p, P, width, LINEAR, ACC)
        e = exp_scores(z, peak_of(z, c, C), c, C)
        weight = 1.0 / tl.sum(e, axis=0)
        slope = A[:, None] + B[:, None] * counted_scores(z)
        inner = tl.sum(e * slope, axis=0) * weight
        grad = e * weight[None, :] * (slope - inner[None, :] + B[:, None])
        store_tile(grad_scores, grad, b, c, C, p, P, width, LINEAR)
    else:
        peak = no_peak(BLOCK_P, ACC)
        norm = tl.zeros((BLOCK_P,), ACC)
        inner = tl.zeros((BLOCK_P,), ACC)
        for block in range(0, C, BLOCK_C):
            c = block + tl.arange(0, BLOCK_C)
            A, B = _slopes(grad_pooled, mass, score, b, c, C, P, EPS, GAMMA, LAM, FOCAL)
            z = load_tile(scores, b, c, C, p, P, width, LINEAR, ACC)
            before = peak
            peak, norm = softmax_step(peak, norm, z, c, C)
            # The step takes the same exponentials: the compiler computes them once.
            rescale, e = tl.exp(before - peak), exp_scores(z, peak, c, C)
            inner = inner * rescale + tl.sum(e * (A[:, None] + B[:, None] * counted_scores(z)), axis=0)
        weight = 1.0 / norm
        inner *= weight
        for block in range(0, C, BLOCK_C):
            c = block + tl.arange(0, BLOCK_C)
            A, B = _slopes(grad_pooled, mass, score, b, c, C, P, EPS, GAMMA, LAM, FOCAL)
            z = load_tile(scores, b, c, C, p, P, width, LINEAR, ACC)
            e = exp_scores(z, peak, c, C)
            grad = e * weight[None, :] * (A[:, None] + B[:, None] * counted_scores(z) - inner[None, :] + B[:, None])
            store_tile(grad_scores, grad, b, c, C, p, P, width, LINEAR)


def _tile(scores: Tensor) -> tuple[dict[str, int], int]:
    """The tile that a program holds, and the pixels that a program of the forward adds up."""
    classes, run = scores.shape[1], RUN[scores.element_size()]
    tile = tile_for(
        classes,
        run,
        most=BLOCK_CLASSES,
        held=MAX_HELD_CLASSES,
        per_thread=PER_THREAD if classes <= MAX_HELD_CLASSES else PER_THREAD // 2,  # or registers spill on sm_80
        eight_warps_above=EIGHT_WARPS_ABOVE,
    )
    return tile, run if classes <= MAX_HELD_CLASSES else tile["BLOCK_P"]


def ngwp_focal_pool(scores: Tensor, eps: float, gamma: float, lam: float, focal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """pooled, mass S and score T / (eps + S), all (B, C) in the accumulation dtype."""
    batch, classes, height, width = scores.shape
    dtype, acc = accumulator(scores)
    pooled, mass, score = (scores.new_empty((batch, classes), dtype=dtype) for _ in range(3))
    if batch == 0:
        return pooled, mass, score
    pixels = height * width
    tile, run = _tile(scores)
    runs = triton.cdiv(pixels, run)
    sums = scores.new_empty((batch, runs, 2, classes), dtype=dtype)
    z = map_of(scores)
    with on_device_of(scores):
        _ngwp_focal_pool_fwd_kernel[(batch * runs,)](
            z, sums, classes, pixels, runs, width,
            LINEAR=linear(z), HELD=classes <= MAX_HELD_CLASSES, RUN=run, ACC=acc, **tile,
        )  # fmt: skip
        block_c = class_block(classes, FINISH_CLASSES)
        _ngwp_focal_pool_finish_kernel[(batch, triton.cdiv(classes, block_c))](
            sums, pooled, mass, score, classes, pixels, runs,
            EPS=eps, GAMMA=gamma, LAM=lam, FOCAL=focal, BLOCK_C=block_c, BLOCK_R=FINISH_RUNS, ACC=acc, num_warps=4,
        )  # fmt: skip
    return pooled, mass, score


def ngwp_focal_pool_backward(
    grad_pooled: Tensor,
    scores: Tensor,
    mass: Tensor,
    score: Tensor,
    eps: float,
    gamma: float,
    lam: float,
    focal: bool,
) -> Tensor:
    """grad_scores, laid out as `torch.empty_like(scores)`."""
    batch, classes, height, width = scores.shape
    grad_scores = torch.empty_like(scores)
    if batch == 0:
        return grad_scores
    pixels = height * width
    _, acc = accumulator(scores)
    tile, _ = _tile(scores)
    tiles = triton.cdiv(pixels, tile["BLOCK_P"])
    z, grad_z = map_of(scores), map_of(grad_scores)
    with on_device_of(scores):
        _ngwp_focal_pool_bwd_kernel[(batch * tiles,)](
            matrix_of(grad_pooled), z, mass, score, grad_z, classes, pixels, tiles, width,
            EPS=eps, GAMMA=gamma, LAM=lam, FOCAL=focal,
            LINEAR=linear(z, grad_z), HELD=classes <= MAX_HELD_CLASSES, ACC=acc, **tile,
        )  # fmt: skip
    return grad_scores

"""nGWP + focal pooling (arXiv 2112.01882, Eq. 1 and 2) in Triton.

With m the softmax of the scores z over classes, S = sum_i m_i and T = sum_i m_i z_i over the P pixels of an image::

    pooled = T / (eps + S) + (1 - S/P)^gamma * log(lam + S/P)

Each program adds up a fixed run of pixels of one image, and the runs are added in order, without atomics: the same bits
in every run and in any batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, linear, on_device_of, strides
from ._tiles import exp_scores, load_tile, peak_of, store_tile

# Pixels that one program of the forward adds up, by bytes of a score. Every run costs 4 numbers per class (two written,
# two read back): with these, 3 % of the bytes of the scores.
RUN = {2: 256, 4: 128, 8: 128}
# Scores that a program holds at a time: 32 per thread of 4 or 8 warps, which leaves room for their exponentials
# (57 to 128 registers a thread on sm_80 and sm_90, no spills).
TILE = 4096
TILE_MANY_CLASSES = 8192
# Up to this many classes are held at once and read once; above, they go by in blocks and are read twice.
MAX_HELD_CLASSES = 256
BLOCK_CLASSES = 128


@triton.jit
def _power(x, EXPONENT: tl.constexpr):
    """x ** EXPONENT for x in 0..1, EXPONENT >= 0; cheap for gamma = 3, as each thread needs it for all its classes."""
    if EXPONENT == 0:
        return tl.full(x.shape, 1.0, x.dtype)
    if EXPONENT == 2:
        return x * x
    if EXPONENT == 3:
        return x * x * x
    return tl.where(x > 0, tl.exp(EXPONENT * tl.log(tl.where(x > 0, x, 1.0))), 0.0)


@triton.jit
def _ngwp_focal_pool_fwd_kernel(
    scores,  # (B, C, H, W), any strides
    sums,  # (B, runs, 2, C): S and T of each run of pixels
    C,
    P,
    runs,
    width,
    batch_stride,
    class_stride,
    row_stride,
    pixel_stride,
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
    c = tl.arange(0, BLOCK_C)
    mass = tl.zeros((BLOCK_C,), ACC)
    total = tl.zeros((BLOCK_C,), ACC)
    for start in range(0, RUN, BLOCK_P):  # once if not HELD
        p = first + start + tl.arange(0, BLOCK_P)
        in_image = p < P
        if HELD:
            z = load_tile(
                scores, b, c, C, p, P, width, batch_stride, class_stride, row_stride, pixel_stride, LINEAR, ACC
            )  # fmt: skip
            e = exp_scores(z, peak_of(z, c, C), c, C)
            m = e * tl.where(in_image, 1.0 / tl.sum(e, axis=0), 0.0)[None, :]
            mass += tl.sum(m, axis=1)
            total += tl.sum(m * z, axis=1)
        else:
            peak = tl.full((BLOCK_P,), -float("inf"), ACC)
            norm = tl.zeros((BLOCK_P,), ACC)
            for block in range(0, C, BLOCK_C):
                z = load_tile(
                    scores, b, block + c, C, p, P, width,
                    batch_stride, class_stride, row_stride, pixel_stride, LINEAR, ACC,
                )  # fmt: skip
                new_peak = tl.maximum(peak, peak_of(z, block + c, C))
                norm = norm * tl.exp(peak - new_peak) + tl.sum(exp_scores(z, new_peak, block + c, C), axis=0)
                peak = new_peak
            weight = tl.where(in_image, 1.0 / norm, 0.0)
            for block in range(0, C, BLOCK_C):
                z = load_tile(
                    scores, b, block + c, C, p, P, width,
                    batch_stride, class_stride, row_stride, pixel_stride, LINEAR, ACC,
                )  # fmt: skip
                m = exp_scores(z, peak, block + c, C) * weight[None, :]
                tl.store(run_sums + block + c, tl.sum(m, axis=1), mask=block + c < C)
                tl.store(run_sums + C + block + c, tl.sum(m * z, axis=1), mask=block + c < C)
    if HELD:
        tl.store(run_sums + c, mass, mask=c < C)
        tl.store(run_sums + C + c, total, mask=c < C)


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
        share = tl.minimum(S / P, 1.0)  # S can pass P by rounding
        value += _power(1.0 - share, GAMMA) * tl.log(LAM + share)
    tl.store(pooled + out, value, mask=in_classes)


@triton.jit
def _slopes(
    grad_pooled,
    mass,
    score,
    b,
    c,
    C,
    P,
    grad_batch_stride,
    grad_class_stride,
    EPS: tl.constexpr,
    GAMMA: tl.constexpr,
    LAM: tl.constexpr,
    FOCAL: tl.constexpr,
    ACC: tl.constexpr,
):
    """A = dL/dS at fixed T and B = dL/dT of a block of classes, so that dL/dm = A + B z."""
    in_classes = c < C
    g = tl.load(grad_pooled + b * grad_batch_stride + c.to(tl.int64) * grad_class_stride, mask=in_classes, other=0.0)
    S = tl.load(mass + b * C + c, mask=in_classes, other=0.0)
    by_total = 1.0 / (EPS + S)
    by_mass = -tl.load(score + b * C + c, mask=in_classes, other=0.0) * by_total
    if FOCAL:
        share = tl.minimum(S / P, 1.0)
        rest = 1.0 - share
        focal = _power(rest, GAMMA - 1) * (rest / (LAM + share) - GAMMA * tl.log(LAM + share)) / P
        by_mass += tl.where(S > P, 0.0, focal)  # beyond P the share is held at 1
    return g * by_mass, g * by_total


@triton.jit
def _ngwp_focal_pool_bwd_kernel(
    grad_pooled,  # (B, C), any strides
    scores,  # (B, C, H, W), any strides
    mass,  # (B, C), as score
    score,
    grad_scores,  # (B, C, H, W), any strides
    C,
    P,
    tiles,
    width,
    grad_pooled_batch_stride,
    grad_pooled_class_stride,
    batch_stride,
    class_stride,
    row_stride,
    pixel_stride,
    grad_batch_stride,
    grad_class_stride,
    grad_row_stride,
    grad_pixel_stride,
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
    c = tl.arange(0, BLOCK_C)
    if HELD:
        A, B = _slopes(
            grad_pooled, mass, score, b, c, C, P, grad_pooled_batch_stride, grad_pooled_class_stride,
            EPS, GAMMA, LAM, FOCAL, ACC,
        )  # fmt: skip
        z = load_tile(
            scores, b, c, C, p, P, width, batch_stride, class_stride, row_stride, pixel_stride, LINEAR, ACC
        )  # fmt: skip
        e = exp_scores(z, peak_of(z, c, C), c, C)
        weight = 1.0 / tl.sum(e, axis=0)
        slope = A[:, None] + B[:, None] * z
        inner = tl.sum(e * slope, axis=0) * weight
        grad = e * weight[None, :] * (slope - inner[None, :] + B[:, None])
        store_tile(
            grad_scores, grad, b, c, C, p, P, width,
            grad_batch_stride, grad_class_stride, grad_row_stride, grad_pixel_stride, LINEAR,
        )  # fmt: skip
    else:
        peak = tl.full((BLOCK_P,), -float("inf"), ACC)
        norm = tl.zeros((BLOCK_P,), ACC)
        inner = tl.zeros((BLOCK_P,), ACC)
        for block in range(0, C, BLOCK_C):
            A, B = _slopes(
                grad_pooled, mass, score, b, block + c, C, P, grad_pooled_batch_stride, grad_pooled_class_stride,
                EPS, GAMMA, LAM, FOCAL, ACC,
            )  # fmt: skip
            z = load_tile(
                scores, b, block + c, C, p, P, width,
                batch_stride, class_stride, row_stride, pixel_stride, LINEAR, ACC,
            )  # fmt: skip
            new_peak = tl.maximum(peak, peak_of(z, block + c, C))
            rescale = tl.exp(peak - new_peak)
            e = exp_scores(z, new_peak, block + c, C)
            norm = norm * rescale + tl.sum(e, axis=0)
            inner = inner * rescale + tl.sum(e * (A[:, None] + B[:, None] * z), axis=0)
            peak = new_peak
        weight = 1.0 / norm
        inner *= weight
        for block in range(0, C, BLOCK_C):
            A, B = _slopes(
                grad_pooled, mass, score, b, block + c, C, P, grad_pooled_batch_stride, grad_pooled_class_stride,
                EPS, GAMMA, LAM, FOCAL, ACC,
            )  # fmt: skip
            z = load_tile(
                scores, b, block + c, C, p, P, width,
                batch_stride, class_stride, row_stride, pixel_stride, LINEAR, ACC,
            )  # fmt: skip
            e = exp_scores(z, peak, block + c, C)
            grad = e * weight[None, :] * (A[:, None] + B[:, None] * z - inner[None, :] + B[:, None])
            store_tile(
                grad_scores, grad, b, block + c, C, p, P, width,
                grad_batch_stride, grad_class_stride, grad_row_stride, grad_pixel_stride, LINEAR,
            )  # fmt: skip


def _tile(scores: Tensor) -> tuple[dict[str, int | bool], int]:
    """How many classes and pixels a program holds at a time and by how many warps; and the pixels of a run."""
    classes, run = scores.shape[1], RUN[scores.element_size()]
    held = classes <= MAX_HELD_CLASSES
    block_c = triton.next_power_of_2(classes) if held else BLOCK_CLASSES
    many = block_c > 64
    block_p = min(run, (TILE_MANY_CLASSES if many else TILE) // block_c)
    tile = {"HELD": held, "BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": 8 if many else 4}
    return tile, run if held else block_p


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
    with on_device_of(scores):
        _ngwp_focal_pool_fwd_kernel[(batch * runs,)](
            scores, sums, classes, pixels, runs, width, *strides(scores),
            LINEAR=linear(scores), RUN=run, ACC=acc, **tile,
        )  # fmt: skip
        block_c = min(32, triton.next_power_of_2(classes))
        _ngwp_focal_pool_finish_kernel[(batch, triton.cdiv(classes, block_c))](
            sums, pooled, mass, score, classes, pixels, runs,
            EPS=eps, GAMMA=gamma, LAM=lam, FOCAL=focal, BLOCK_C=block_c, BLOCK_R=32, ACC=acc, num_warps=4,
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
    with on_device_of(scores):
        _ngwp_focal_pool_bwd_kernel[(batch * tiles,)](
            grad_pooled, scores, mass, score, grad_scores, classes, pixels, tiles, width, *grad_pooled.stride(),
            *strides(scores), *strides(grad_scores),
            EPS=eps, GAMMA=gamma, LAM=lam, FOCAL=focal,
            LINEAR=linear(scores, grad_scores), ACC=acc, **tile,
        )  # fmt: skip
    return grad_scores

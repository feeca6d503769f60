"""One-versus-rest logits of a softmax model in Triton.

With the highest score t of a pixel, the second u (t again where several are the highest), and the sum R of exp(s - u)
over all classes but one of the highest, the others of a class have the exponentials::

    exp(u) R            of the one class above u
    exp(t) (1 + x_c)    of any other, x_c = (R - exp(s_c - u)) exp(u - t)

A logit is the score less the logarithm of that. More in csrc/math/one_versus_rest.h.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, linear, map_of, on_device_of, tile_for
from ._math import log1p, lowest
from ._tiles import load_tile, store_tile

# Up to this many classes are held at once and read once. More go by in blocks, and the logits are read twice by the
# forward, three times by the backward.
MAX_HELD_CLASSES = 128
BLOCK_CLASSES = 64


@triton.jit
def _load_scores(m, b, c, C, p, P, width, LINEAR: tl.constexpr, ACC: tl.constexpr):
    """A tile of logits, -inf for classes that fill up the block."""
    return tl.where((c < C)[:, None], load_tile(m, b, c, C, p, P, width, LINEAR, ACC), -float("inf"))


@triton.jit
def _terms(z, second):
    """exp(s - u); 1 for a class above u, whose own is not asked for and could be infinite."""
    return tl.exp(tl.where(z > second[None, :], 0.0, z - second[None, :]))


@triton.jit
def _others_of(z, c, C, ACC: tl.constexpr):
    """t, u and R of the classes of a block; u is `lowest` and R 0 if all but one are ruled out."""
    top = tl.max(z, axis=0)
    # the first of the highest, which is left out of R
    is_top = c[:, None] == tl.min(tl.where(z == top[None, :], c[:, None], C), axis=0)[None, :]
    second = tl.maximum(tl.max(tl.where(is_top, -float("inf"), z), axis=0), lowest(ACC))
    return top, second, tl.sum(tl.where(is_top, 0.0, _terms(z, second)), axis=0)


@triton.jit
def _joined(top, second, total, other_top, other_second, other_total):
    """t, u and R of two sets of classes."""
    lower = tl.minimum(top, other_top)
    higher = tl.maximum(tl.maximum(second, other_second), lower)
    total = total * tl.exp(second - higher) + other_total * tl.exp(other_second - higher) + tl.exp(lower - higher)
    return tl.maximum(top, other_top), higher, total


@triton.jit
def _others_in_blocks(
    m, b, C, p, P, width, LINEAR: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr
):
    """t, u and R of classes that go by in blocks."""
    top = tl.full((BLOCK_P,), -float("inf"), ACC)
    second = tl.full((BLOCK_P,), lowest(ACC), ACC)
    total = tl.zeros((BLOCK_P,), ACC)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        z = _load_scores(m, b, c, C, p, P, width, LINEAR, ACC)
        block_top, block_second, block_total = _others_of(z, c, C, ACC)
        top, second, total = _joined(top, second, total, block_top, block_second, block_total)
    return top, second, total


@triton.jit
def _others_beside_top(terms, total, ratio):
    """x_c; below 0 by rounding only, and NaN stays."""
    left = total[None, :] - terms
    return tl.where(left < 0, 0.0, left) * ratio[None, :]


@triton.jit
def _one_versus_rest_fwd_kernel(
    logits,  # (B, C, H, W), any strides, as out
    out,
    C,
    P,
    tiles,
    width,
    LINEAR: tl.constexpr,
    HELD: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    first = tl.arange(0, BLOCK_C)
    if HELD:
        z = _load_scores(logits, b, first, C, p, P, width, LINEAR, ACC)
        top, second, total = _others_of(z, first, C, ACC)
    else:
        top, second, total = _others_in_blocks(logits, b, C, p, P, width, LINEAR, BLOCK_C, BLOCK_P, ACC)
    total += top - top  # NaN where the softmax is
    ratio = tl.exp(second - top)
    of_above = tl.where(total == 0, float("inf"), (top - second) - log1p(total - 1.0))
    for block in range(0, C, BLOCK_C):  # once if HELD
        c = block + first
        if not HELD:
            z = _load_scores(logits, b, c, C, p, P, width, LINEAR, ACC)
        logit = (z - top[None, :]) - log1p(_others_beside_top(_terms(z, second), total, ratio))
        logit = tl.where(z > second[None, :], of_above[None, :], logit)
        store_tile(out, logit, b, c, C, p, P, width, LINEAR)


@triton.jit
def _quotients(g, z, second, terms, total, ratio):
    """h_c, 0 for a class above u."""
    return tl.where(z > second[None, :], 0.0, g / (1.0 + _others_beside_top(terms, total, ratio)))


@triton.jit
def _one_versus_rest_bwd_kernel(
    grad,  # (B, C, H, W), any strides, as logits and grad_logits
    logits,
    grad_logits,
    C,
    P,
    tiles,
    width,
    LINEAR: tl.constexpr,
    HELD: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    first = tl.arange(0, BLOCK_C)
    if HELD:
        z = _load_scores(logits, b, first, C, p, P, width, LINEAR, ACC)
        g = load_tile(grad, b, first, C, p, P, width, LINEAR, ACC)
        top, second, total = _others_of(z, first, C, ACC)
    else:
        top, second, total = _others_in_blocks(logits, b, C, p, P, width, LINEAR, BLOCK_C, BLOCK_P, ACC)
    total += top - top  # NaN where the softmax is
    ratio = tl.exp(second - top)
    quotients = tl.zeros((BLOCK_P,), ACC)
    above = tl.zeros((BLOCK_P,), ACC)
    for block in range(0, C, BLOCK_C):  # once if HELD
        c = block + first
        if not HELD:
            z = _load_scores(logits, b, c, C, p, P, width, LINEAR, ACC)
            g = load_tile(grad, b, c, C, p, P, width, LINEAR, ACC)
        quotients += tl.sum(_quotients(g, z, second, _terms(z, second), total, ratio), axis=0)
        above += tl.sum(tl.where(z > second[None, :], g, 0.0), axis=0)
    above = tl.where(total == 0, 0.0, above / total)
    for block in range(0, C, BLOCK_C):
        c = block + first
        if not HELD:
            z = _load_scores(logits, b, c, C, p, P, width, LINEAR, ACC)
            g = load_tile(grad, b, c, C, p, P, width, LINEAR, ACC)
        terms = _terms(z, second)
        rest = quotients[None, :] - _quotients(g, z, second, terms, total, ratio)
        slope = g - terms * (ratio[None, :] * rest + above[None, :])
        slope = tl.where(z > second[None, :], g - quotients[None, :], slope)
        store_tile(grad_logits, slope, b, c, C, p, P, width, LINEAR)


def one_versus_rest(logits: Tensor) -> Tensor:
    """Laid out as `torch.empty_like(logits)`, as grad_logits below."""
    batch, classes, height, width = logits.shape
    pixels = height * width
    result = torch.empty_like(logits)
    _, acc = accumulator(logits)
    tile = tile_for(classes, pixels, most=BLOCK_CLASSES, held=MAX_HELD_CLASSES)
    tiles = triton.cdiv(pixels, tile["BLOCK_P"])
    if batch:
        z, out = map_of(logits), map_of(result)
        with on_device_of(logits):
            _one_versus_rest_fwd_kernel[(batch * tiles,)](
                z, out, classes, pixels, tiles, width,
                LINEAR=linear(z, out), HELD=classes <= MAX_HELD_CLASSES, ACC=acc, **tile,
            )  # fmt: skip
    return result


def one_versus_rest_backward(grad: Tensor, logits: Tensor) -> Tensor:
    batch, classes, height, width = logits.shape
    pixels = height * width
    grad_logits = torch.empty_like(logits)
    _, acc = accumulator(grad, logits)
    tile = tile_for(classes, pixels, most=BLOCK_CLASSES, held=MAX_HELD_CLASSES)
    tiles = triton.cdiv(pixels, tile["BLOCK_P"])
    if batch:
        g, z, grad_z = map_of(grad), map_of(logits), map_of(grad_logits)
        with on_device_of(logits):
            _one_versus_rest_bwd_kernel[(batch * tiles,)](
                g, z, grad_z, classes, pixels, tiles, width,
                LINEAR=linear(g, z, grad_z), HELD=classes <= MAX_HELD_CLASSES, ACC=acc, **tile,
            )  # fmt: skip
    return grad_logits

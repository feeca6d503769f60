"""Binary cross-entropy of the new classes' scores against a prior from outside, in Triton.

The targets are maps, or come from the names' similarity A: sigmoid(A[n, k] / A[n, 0]) where the old model sees class k.
Classes whose image-level label is 0 are not read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Map, Matrix, accumulator, linear, map_of, matrix_of, on_device_of, tile_for
from ._math import highest_of, sigmoid, soft_margin
from ._tiles import class_rows, load_tile, pixel_offset, store_tile

# Few classes at a time, as for the other logistic losses; of the old model's as many pixels as of the new classes'.
BLOCK_CLASSES = 16
# Of its own accord, ptxas gives the backward by names 64 registers on sm_80 and spills 8 bytes at 128 classes.
NAMES_REGISTERS = 128


@triton.jit
def _labels_of(image_labels, b, n, N, first, ACC: tl.constexpr):
    """The labels of new classes, 0 for what is none; the first is in column `first`."""
    row = image_labels.data + b * image_labels.batch + (first + n).to(tl.int64) * image_labels.channel
    return tl.load(row, mask=(n >= 0) & (n < N), other=0).to(ACC)


@triton.jit
def _seen(
    old_logits, image_labels, b, old, N, first, p, P, width,
    LINEAR: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The class that the old model sees at each pixel: the first NaN, else the first of the highest.

    0 in an image that shows no new class: nobody asks there.
    """
    shown = tl.zeros((), tl.int32)
    for block in range(0, N, BLOCK_C):
        n = block + tl.arange(0, BLOCK_C)
        shown += tl.sum((_labels_of(image_labels, b, n, N, first, ACC) != 0).to(tl.int32), axis=0)
    highest = tl.full((BLOCK_P,), -float("inf"), ACC)
    best = tl.zeros((BLOCK_P,), tl.int32)
    for block in range(0, tl.where(shown > 0, old, 0), BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        s = load_tile(old_logits, b, c, old, p, P, width, LINEAR, ACC)
        s = tl.where((c < old)[:, None], s, -float("inf"))
        peak = tl.reduce(s, 0, highest_of)
        first_highest = tl.min(tl.where((s == peak[None, :]) | (s != s), c[:, None], old), axis=0)
        better = (peak > highest) | ((peak != peak) & (highest == highest))
        best = tl.where(better, first_highest, best)
        highest = tl.where(better, peak, highest)
    return best


@triton.jit
def _scores_and_targets(
    scores, source, similarity, b, n, shown, seen, old, p, P, width, LINEAR: tl.constexpr, ACC: tl.constexpr
):
    """Tiles of the scores and targets of new classes, 0 where nothing is shown."""
    there = shown[:, None] & (p < P)[None, :]
    at = class_rows(scores, b, old + n) + pixel_offset(scores, p, width, LINEAR)[None, :]
    z = tl.load(at, mask=there, other=0.0).to(ACC)
    if similarity is None:
        at = class_rows(source, b, n) + pixel_offset(source, p, width, LINEAR)[None, :]
        t = tl.load(at, mask=there, other=0.0).to(ACC)
    else:
        row = similarity.data + (old + n)[:, None].to(tl.int64) * similarity.batch
        background = tl.load(row, mask=shown[:, None], other=1.0).to(ACC)
        of_seen = tl.load(row + seen[None, :].to(tl.int64) * similarity.channel, mask=there, other=0.0).to(ACC)
        t = sigmoid(of_seen / background)
    return z, t


@triton.jit(do_not_specialize=["total"])
def _prior_loss_fwd_kernel(
    scores,  # (B, C, H, W), any strides, as source
    source,  # targets (B, N, H, W), or the old model's logits (B, C - N, H, W) if there is a similarity
    similarity,  # (C, C), or None
    image_labels,  # (B, L)
    sums,  # (B, tiles): what the pixels of a tile add to the loss
    N,
    old,  # C - N
    first,  # L - N
    P,
    tiles,
    total,
    width,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    loss = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    seen = tl.zeros((BLOCK_P,), tl.int32)
    if similarity is not None:
        seen = _seen(source, image_labels, b, old, N, first, p, P, width, LINEAR, BLOCK_C, BLOCK_P, ACC)
    for block in range(0, N, BLOCK_C):
        n = block + tl.arange(0, BLOCK_C)
        label = _labels_of(image_labels, b, n, N, first, ACC)
        z, t = _scores_and_targets(scores, source, similarity, b, n, label != 0, seen, old, p, P, width, LINEAR, ACC)
        there = (label != 0)[:, None] & (p < P)[None, :]
        loss += tl.where(there, label[:, None] * soft_margin(z, t), 0.0)
    tl.store(sums + program, tl.sum(tl.sum(loss, axis=1), axis=0) / total)


@triton.jit(do_not_specialize=["total"])
def _prior_loss_bwd_kernel(
    grad,  # of the loss, a scalar
    scores,  # as in the forward, as the others
    source,
    similarity,
    image_labels,
    grad_scores,  # (B, C, H, W)
    C,
    N,
    old,
    first,
    P,
    tiles,
    total,
    width,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    factor = tl.load(grad).to(ACC) / total
    seen = tl.zeros((BLOCK_P,), tl.int32)
    if similarity is not None:
        seen = _seen(source, image_labels, b, old, N, first, p, P, width, LINEAR, BLOCK_C, BLOCK_P, ACC)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        label = _labels_of(image_labels, b, c - old, N, first, ACC)
        n = c - old
        z, t = _scores_and_targets(scores, source, similarity, b, n, label != 0, seen, old, p, P, width, LINEAR, ACC)
        derivative = tl.where((label != 0)[:, None], (sigmoid(z) - t) * (label * factor)[:, None], 0.0)
        store_tile(grad_scores, derivative, b, c, C, p, P, width, LINEAR)


def prior_loss(
    scores: Tensor, image_labels: Tensor, maps: Tensor | None, similarity: Tensor | None, old_logits: Tensor | None
) -> Tensor:
    batch, _, height, width = scores.shape
    pixels = height * width
    z, source, table, new, old = _maps_of(scores, maps, similarity, old_logits)
    dtype, acc = accumulator(scores, image_labels, maps, similarity, old_logits)
    tile = tile_for(new if table is None else max(new, old), pixels, most=BLOCK_CLASSES)
    tiles = triton.cdiv(pixels, tile["BLOCK_P"])
    sums = scores.new_empty((batch, tiles), dtype=dtype)
    if batch:
        with on_device_of(scores):
            _prior_loss_fwd_kernel[(batch * tiles,)](
                z, source, table, matrix_of(image_labels), sums, new, old, image_labels.shape[1] - new, pixels, tiles,
                batch * new * pixels, width, LINEAR=linear(z, source), ACC=acc, **tile,
            )  # fmt: skip
    return sums.sum()


def prior_loss_backward(
    grad: Tensor,
    scores: Tensor,
    image_labels: Tensor,
    maps: Tensor | None,
    similarity: Tensor | None,
    old_logits: Tensor | None,
) -> Tensor:
    """grad_scores, laid out as `torch.empty_like(scores)`."""
    batch, classes, height, width = scores.shape
    pixels = height * width
    grad_scores = torch.empty_like(scores)
    z, source, table, new, old = _maps_of(scores, maps, similarity, old_logits)
    _, acc = accumulator(grad, scores, image_labels, maps, similarity, old_logits)
    tile = tile_for(classes, pixels, most=BLOCK_CLASSES)
    tiles = triton.cdiv(pixels, tile["BLOCK_P"])
    if batch:
        grad_z = map_of(grad_scores)
        with on_device_of(scores):
            _prior_loss_bwd_kernel[(batch * tiles,)](
                grad, z, source, table, matrix_of(image_labels), grad_z, classes, new, old,
                image_labels.shape[1] - new, pixels, tiles, batch * new * pixels, width,
                LINEAR=linear(z, source, grad_z), ACC=acc, **tile, maxnreg=None if table is None else NAMES_REGISTERS,
            )  # fmt: skip
    return grad_scores


def _maps_of(
    scores: Tensor, maps: Tensor | None, similarity: Tensor | None, old_logits: Tensor | None
) -> tuple[Map, Map, Matrix | None, int, int]:
    """The scores; what the targets are made from, and by which table; the number of new classes and of old ones."""
    z, classes = map_of(scores), scores.shape[1]
    if maps is not None:
        return z, map_of(maps), None, maps.shape[1], classes - maps.shape[1]
    assert similarity is not None and old_logits is not None
    old = old_logits.shape[1]
    return z, map_of(old_logits), matrix_of(similarity), classes - old, old

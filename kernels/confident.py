"""Choosing the pixels that exactly one class claims, and the loss on them (SSS), in Triton.

Published code of WILSON (arXiv 2112.01882).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, linear, map_of, matrix_of, on_device_of, tile_for
from ._math import class_weight, threshold
from ._tiles import (
    exp_scores,
    load_gates,
    load_labels,
    load_tile,
    no_peak,
    peak_of,
    softmax_of,
    softmax_step,
    store_tile,
)

# A thread of confident_labels holds 16 scores.
CONFIDENT_CLASSES = 16
CONFIDENT_PIXELS = 128
# All programs of an image read the peaks of all its runs of pixels: at most so many.
MAX_RUNS = 64
# A thread of the cross-entropy holds 16 scores. The backward reads up to MAX_HELD_CLASSES classes once, more twice.
EIGHT_WARPS_ABOVE = 32
MAX_HELD_CLASSES = 128
BLOCK_CLASSES = 64
BLOCK_COUNTS = tl.constexpr(128)


# --------------------------------------------------------------------------------------------------- confident pixels


@triton.jit
def _confident_labels_peaks_kernel(
    refined,  # (B, C, H, W), any strides
    image_labels,  # (B, C-1), any strides
    peaks,  # (B, runs, C): the highest gated score of each run of pixels
    C,
    P,
    runs,
    run,
    width,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // runs).to(tl.int64)
    first = program % runs * run
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        gate = load_gates(image_labels, b, c, C, ACC)
        highest = tl.full((BLOCK_C, BLOCK_P), -float("inf"), ACC)
        undefined = tl.zeros((BLOCK_C, BLOCK_P), tl.int32)
        for start in range(0, run, BLOCK_P):
            p = first + start + tl.arange(0, BLOCK_P)
            r = load_tile(refined, b, c, C, p, P, width, LINEAR, ACC)
            r = tl.where((p < P)[None, :], r * gate[:, None], -float("inf"))
            highest = tl.where((r > highest) | (r != r), r, highest)
            undefined |= (r != r).to(tl.int32)
        peak = tl.where(tl.max(undefined, axis=1) > 0, float("nan"), tl.max(highest, axis=1))
        tl.store(peaks + program.to(tl.int64) * C + c, peak, mask=c < C)


@triton.jit
def _confident_labels_fwd_kernel(
    refined,  # (B, C, H, W), any strides
    image_labels,  # (B, C-1), any strides
    peaks,  # (B, runs, C)
    labels,  # (B, P) int64
    counts,  # (B, tiles, C): pixels of a tile that carry the class
    C,
    P,
    runs,
    tiles,
    ignore_index,
    width,
    BACKGROUND_RATIO: tl.constexpr,
    CLASS_RATIO: tl.constexpr,
    FLOOR: tl.constexpr,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    t = tl.arange(0, BLOCK_R)
    claims = tl.zeros((BLOCK_P,), tl.int32)
    owner = tl.zeros((BLOCK_P,), tl.int32)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        in_classes = c < C
        row = peaks + ((b * runs + t) * C)[:, None] + c[None, :]
        of_runs = tl.load(row, mask=(t < runs)[:, None] & in_classes[None, :], other=-float("inf"))
        undefined = tl.max((of_runs != of_runs).to(tl.int32), axis=0) > 0
        peak = tl.where(undefined, float("nan"), tl.max(of_runs, axis=0))
        least = threshold(peak, c, BACKGROUND_RATIO, CLASS_RATIO, FLOOR)
        r = load_tile(refined, b, c, C, p, P, width, LINEAR, ACC)
        gate = load_gates(image_labels, b, c, C, ACC)
        claimed = (r * gate[:, None] > least[:, None]) & in_classes[:, None] & (p < P)[None, :]
        claims += tl.sum(claimed.to(tl.int32), axis=0)
        owner = tl.maximum(owner, tl.max(tl.where(claimed, c[:, None], 0), axis=0))
    owner = tl.where(claims == 1, owner, -1)
    label = tl.where(owner < 0, ignore_index, owner.to(tl.int64))
    tl.store(labels + b * P + p, label, mask=p < P)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        own = (owner[None, :] == c[:, None]).to(tl.int32)
        tl.store(counts + program.to(tl.int64) * C + c, tl.sum(own, axis=1), mask=c < C)


def confident_labels(
    refined: Tensor, image_labels: Tensor, background_ratio: float, class_ratio: float, floor: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Labels (B, H, W) and counts (B, C), int64."""
    batch, classes, height, width = refined.shape
    labels = torch.empty((batch, height, width), dtype=torch.int64, device=refined.device)
    if batch == 0:
        return labels, labels.new_empty((batch, classes))
    pixels = height * width
    dtype, acc = accumulator(refined)
    tile = tile_for(classes, CONFIDENT_PIXELS, most=CONFIDENT_CLASSES)
    run = max(CONFIDENT_PIXELS, triton.next_power_of_2(triton.cdiv(pixels, MAX_RUNS)))
    runs, tiles = triton.cdiv(pixels, run), triton.cdiv(pixels, CONFIDENT_PIXELS)
    peaks = refined.new_empty((batch, runs, classes), dtype=dtype)
    counts = torch.empty((batch, tiles, classes), dtype=torch.int32, device=refined.device)
    r, gates = map_of(refined), matrix_of(image_labels)
    with on_device_of(refined):
        _confident_labels_peaks_kernel[(batch * runs,)](
            r, gates, peaks, classes, pixels, runs, run, width, LINEAR=linear(r), ACC=acc, **tile
        )
        _confident_labels_fwd_kernel[(batch * tiles,)](
            r, gates, peaks, labels, counts, classes, pixels, runs, tiles, ignore_index, width,
            BACKGROUND_RATIO=background_ratio, CLASS_RATIO=class_ratio, FLOOR=floor,
            LINEAR=linear(r), BLOCK_R=triton.next_power_of_2(runs), ACC=acc, **tile,
        )  # fmt: skip
    return labels, counts.sum(1)


# ------------------------------------------------------------------------------------------------ the loss on them


@triton.jit
def _pixel_weight(
    label,  # of pixels, -1 for none
    counts,  # (B, C), any strides
    image_labels,  # (B, C-1), any strides
    b,
    C,
    ACC: tl.constexpr,
):
    """The weight of each pixel's class; 0 if the image's classes are not the labelled ones and background."""
    of_image = counts.data + b * counts.batch
    count = tl.zeros((BLOCK_COUNTS,), tl.int64)
    extra = tl.zeros((BLOCK_COUNTS,), tl.int32)  # classes found, less those expected
    for block in range(0, C, BLOCK_COUNTS):
        c = block + tl.arange(0, BLOCK_COUNTS)
        n_c = tl.load(of_image + c.to(tl.int64) * counts.channel, mask=c < C, other=0).to(tl.int64)
        expected = (load_gates(image_labels, b, c, C, ACC) > 0) & (c < C)
        count += n_c
        extra += (n_c > 0).to(tl.int32) - expected.to(tl.int32)
    n = tl.sum(count, axis=0)
    complete = tl.sum(extra, axis=0) == 0
    own = tl.load(of_image + label.to(tl.int64) * counts.channel, mask=label >= 0, other=0).to(tl.int64)
    return tl.where((label >= 0) & complete, class_weight(own, n, ACC), 0.0)


@triton.jit(do_not_specialize=["total"])
def _balanced_cross_entropy_fwd_kernel(
    scores,  # (B, C, H, W), any strides
    labels,  # (B, H, W) integers, any strides
    counts,  # (B, C), any strides
    image_labels,  # (B, C-1), any strides
    sums,  # (B, tiles): what the pixels of a tile add to the loss
    C,
    P,
    tiles,
    total,
    ignore_index,
    width,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    label = load_labels(labels, b, p, P, width, C, ignore_index, LINEAR)
    weight = _pixel_weight(label, counts, image_labels, b, C, ACC)
    peak = no_peak(BLOCK_P, ACC)
    norm = tl.zeros((BLOCK_P,), ACC)
    own = tl.zeros((BLOCK_P,), ACC)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        z = load_tile(scores, b, c, C, p, P, width, LINEAR, ACC)
        peak, norm = softmax_step(peak, norm, z, c, C)
        own += tl.sum(tl.where(c[:, None] == label[None, :], z, 0.0), axis=0)
    loss = tl.where(weight != 0, weight * (tl.log(norm) + (peak - own)), 0.0)
    tl.store(sums + program, tl.sum(loss, axis=0) / total)


@triton.jit(do_not_specialize=["total"])
def _balanced_cross_entropy_bwd_kernel(
    grad,  # of the loss, a scalar
    scores,  # (B, C, H, W), any strides, as grad_scores
    labels,  # (B, H, W) integers, any strides
    counts,  # (B, C), any strides
    image_labels,  # (B, C-1), any strides
    grad_scores,
    C,
    P,
    tiles,
    total,
    ignore_index,
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
    label = load_labels(labels, b, p, P, width, C, ignore_index, LINEAR)
    weight = _pixel_weight(label, counts, image_labels, b, C, ACC)
    weight *= tl.load(grad).to(ACC) / total
    if HELD:
        z = load_tile(scores, b, first, C, p, P, width, LINEAR, ACC)
        e = exp_scores(z, peak_of(z, first, C), first, C)
        norm = tl.sum(e, axis=0)
    else:
        peak, norm = softmax_of(scores, b, C, p, P, width, LINEAR, BLOCK_C, BLOCK_P, ACC)
    for block in range(0, C, BLOCK_C):  # once if HELD
        c = block + first
        if not HELD:
            e = exp_scores(load_tile(scores, b, c, C, p, P, width, LINEAR, ACC), peak, c, C)
        derivative = e / norm[None, :] - (c[:, None] == label[None, :]).to(ACC)
        # whatever a pixel that does not count holds
        derivative = tl.where((weight != 0)[None, :], derivative * weight[None, :], 0.0)
        store_tile(grad_scores, derivative, b, c, C, p, P, width, LINEAR)


def _tile(classes: int, pixels: int) -> dict[str, int]:
    return tile_for(
        classes, pixels, most=BLOCK_CLASSES, held=MAX_HELD_CLASSES, eight_warps_above=EIGHT_WARPS_ABOVE
    )  # fmt: skip


def balanced_cross_entropy(
    scores: Tensor, labels: Tensor, counts: Tensor, image_labels: Tensor, ignore_index: int
) -> Tensor:
    batch, classes, height, width = scores.shape
    pixels = height * width
    dtype, acc = accumulator(scores)
    tile = _tile(classes, pixels)
    tiles = triton.cdiv(pixels, tile["BLOCK_P"])
    sums = scores.new_empty((batch, tiles), dtype=dtype)
    if batch:
        z, own = map_of(scores), map_of(labels)
        with on_device_of(scores):
            _balanced_cross_entropy_fwd_kernel[(batch * tiles,)](
                z, own, matrix_of(counts), matrix_of(image_labels), sums, classes, pixels, tiles, labels.numel(),
                ignore_index, width, LINEAR=linear(z, own), ACC=acc, **tile,
            )  # fmt: skip
    return sums.sum()


def balanced_cross_entropy_backward(
    grad: Tensor, scores: Tensor, labels: Tensor, counts: Tensor, image_labels: Tensor, ignore_index: int
) -> Tensor:
    """grad_scores, laid out as `torch.empty_like(scores)`."""
    batch, classes, height, width = scores.shape
    pixels = height * width
    grad_scores = torch.empty_like(scores)
    _, acc = accumulator(grad, scores)
    tile = _tile(classes, pixels)
    tiles = triton.cdiv(pixels, tile["BLOCK_P"])
    if batch:
        z, own, grad_z = map_of(scores), map_of(labels), map_of(grad_scores)
        with on_device_of(scores):
            _balanced_cross_entropy_bwd_kernel[(batch * tiles,)](
                grad, z, own, matrix_of(counts), matrix_of(image_labels), grad_z, classes, pixels, tiles,
                labels.numel(), ignore_index, width,
                LINEAR=linear(z, own, grad_z), HELD=classes <= MAX_HELD_CLASSES, ACC=acc, **tile,
            )  # fmt: skip
    return grad_scores

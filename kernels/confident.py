"""Choosing the pixels that exactly one class claims and the loss on them (SSS) in Triton.

Published code of WILSON (arXiv 2112.01882).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, class_block, linear, numbers, on_device_of, strides
from ._tiles import exp_scores, gates, load_tile, peak_of, read_labels, store_tile

# Scores that a program of confident_labels holds: 16 per thread of 4 warps.
CONFIDENT_CLASSES = 16
CONFIDENT_PIXELS = 128
# The peaks of each run of pixels are read by all programs of the image: at most so many runs.
MAX_RUNS = 64
# Scores that a program of the cross-entropy holds: 16 per thread of 4 or 8 warps. Up to MAX_HELD_CLASSES the backward
# reads them once, above twice.
TILE = 2048
TILE_MANY_CLASSES = 4096
MAX_HELD_CLASSES = 128
BLOCK_CLASSES = 64
BLOCK_COUNTS = tl.constexpr(128)


# --------------------------------------------------------------------------------------------------- confident pixels


@triton.jit
def _confident_peaks_kernel(
    refined,  # (B, C, H, W), any strides
    image_labels,  # (B, C-1), any strides
    peaks,  # (B, runs, C): the highest gated score of each run of pixels
    C,
    P,
    runs,
    run,
    width,
    labels_batch,
    labels_class,
    batch_stride,
    class_stride,
    row_stride,
    pixel_stride,
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
        gate = gates(image_labels, b, c, C, labels_batch, labels_class, ACC)
        highest = tl.full((BLOCK_C, BLOCK_P), -float("inf"), ACC)
        for start in range(0, run, BLOCK_P):
            p = first + start + tl.arange(0, BLOCK_P)
            r = load_tile(
                refined, b, c, C, p, P, width, batch_stride, class_stride, row_stride, pixel_stride, LINEAR, ACC
            )  # fmt: skip
            highest = tl.maximum(highest, tl.where((p < P)[None, :], r * gate[:, None], -float("inf")))
        tl.store(peaks + program.to(tl.int64) * C + c, tl.max(highest, axis=1), mask=c < C)


@triton.jit
def _confident_labels_kernel(
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
    labels_batch,
    labels_class,
    batch_stride,
    class_stride,
    row_stride,
    pixel_stride,
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
        ratio = tl.where(c == 0, tl.full((BLOCK_C,), BACKGROUND_RATIO, ACC), tl.full((BLOCK_C,), CLASS_RATIO, ACC))
        threshold = tl.maximum(ratio * tl.max(of_runs, axis=0), tl.full((BLOCK_C,), FLOOR, ACC))
        r = load_tile(
            refined, b, c, C, p, P, width, batch_stride, class_stride, row_stride, pixel_stride, LINEAR, ACC
        )  # fmt: skip
        gate = gates(image_labels, b, c, C, labels_batch, labels_class, ACC)
        claimed = (r * gate[:, None] > threshold[:, None]) & in_classes[:, None] & (p < P)[None, :]
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
    tile = {"BLOCK_C": class_block(classes, CONFIDENT_CLASSES), "BLOCK_P": CONFIDENT_PIXELS, "ACC": acc, "num_warps": 4}
    run = max(CONFIDENT_PIXELS, triton.next_power_of_2(triton.cdiv(pixels, MAX_RUNS)))
    runs, tiles = triton.cdiv(pixels, run), triton.cdiv(pixels, CONFIDENT_PIXELS)
    peaks = refined.new_empty((batch, runs, classes), dtype=dtype)
    counts = torch.empty((batch, tiles, classes), dtype=torch.int32, device=refined.device)
    gates = numbers(image_labels)
    lie = (width, *gates.stride(), *strides(refined))
    with on_device_of(refined):
        _confident_peaks_kernel[(batch * runs,)](
            refined, gates, peaks, classes, pixels, runs, run, *lie, LINEAR=linear(refined), **tile
        )
        _confident_labels_kernel[(batch * tiles,)](
            refined, gates, peaks, labels, counts, classes, pixels, runs, tiles, ignore_index, *lie,
            BACKGROUND_RATIO=background_ratio, CLASS_RATIO=class_ratio, FLOOR=floor, LINEAR=linear(refined),
            BLOCK_R=triton.next_power_of_2(runs), **tile,
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
    counts_batch,
    counts_class,
    labels_batch,
    labels_class,
    ACC: tl.constexpr,
):
    """(n - n_c) / (1 + n) of each pixel's class; 0 if the image's classes are not the labelled ones and background."""
    of_image = counts + b * counts_batch
    count = tl.zeros((BLOCK_COUNTS,), tl.int64)
    extra = tl.zeros((BLOCK_COUNTS,), tl.int32)  # classes found, less those expected
    for block in range(0, C, BLOCK_COUNTS):
        c = block + tl.arange(0, BLOCK_COUNTS)
        n_c = tl.load(of_image + c.to(tl.int64) * counts_class, mask=c < C, other=0).to(tl.int64)
        expected = (gates(image_labels, b, c, C, labels_batch, labels_class, ACC) > 0) & (c < C)
        count += n_c
        extra += (n_c > 0).to(tl.int32) - expected.to(tl.int32)
    n = tl.sum(count, axis=0)
    complete = tl.sum(extra, axis=0) == 0
    own = tl.load(of_image + label.to(tl.int64) * counts_class, mask=label >= 0, other=0).to(tl.int64)
    return tl.where((label >= 0) & complete, (n - own).to(ACC) / (1 + n).to(ACC), 0.0)


@triton.jit
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
    labels_batch,
    labels_row,
    labels_pixel,
    counts_batch,
    counts_class,
    image_labels_batch,
    image_labels_class,
    batch_stride,
    class_stride,
    row_stride,
    pixel_stride,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    label = read_labels(
        labels, b, p, P, width, labels_batch, labels_row, labels_pixel, C, ignore_index, LINEAR
    )  # fmt: skip
    weight = _pixel_weight(
        label, counts, image_labels, b, C,
        counts_batch, counts_class, image_labels_batch, image_labels_class, ACC,
    )  # fmt: skip
    peak = tl.full((BLOCK_P,), -float("inf"), ACC)
    norm = tl.zeros((BLOCK_P,), ACC)
    own = tl.zeros((BLOCK_P,), ACC)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        z = load_tile(
            scores, b, c, C, p, P, width, batch_stride, class_stride, row_stride, pixel_stride, LINEAR, ACC
        )  # fmt: skip
        new_peak = tl.maximum(peak, peak_of(z, c, C))
        norm = norm * tl.exp(peak - new_peak) + tl.sum(exp_scores(z, new_peak, c, C), axis=0)
        peak = new_peak
        own += tl.sum(tl.where(c[:, None] == label[None, :], z, 0.0), axis=0)
    loss = tl.where(label >= 0, weight * (tl.log(norm) + (peak - own)), 0.0)
    tl.store(sums + program, tl.sum(loss, axis=0) / total)


@triton.jit
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
    labels_batch,
    labels_row,
    labels_pixel,
    counts_batch,
    counts_class,
    image_labels_batch,
    image_labels_class,
    batch_stride,
    class_stride,
    row_stride,
    pixel_stride,
    grad_batch,
    grad_class,
    grad_row,
    grad_pixel,
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
    label = read_labels(
        labels, b, p, P, width, labels_batch, labels_row, labels_pixel, C, ignore_index, LINEAR
    )  # fmt: skip
    weight = _pixel_weight(
        label, counts, image_labels, b, C,
        counts_batch, counts_class, image_labels_batch, image_labels_class, ACC,
    )  # fmt: skip
    weight *= tl.load(grad).to(ACC) / total
    peak = tl.full((BLOCK_P,), -float("inf"), ACC)
    norm = tl.zeros((BLOCK_P,), ACC)
    if HELD:
        z = load_tile(
            scores, b, first, C, p, P, width, batch_stride, class_stride, row_stride, pixel_stride, LINEAR, ACC
        )  # fmt: skip
        e = exp_scores(z, peak_of(z, first, C), first, C)
        norm += tl.sum(e, axis=0)
    else:
        for block in range(0, C, BLOCK_C):
            c = block + first
            z = load_tile(
                scores, b, c, C, p, P, width, batch_stride, class_stride, row_stride, pixel_stride, LINEAR, ACC
            )  # fmt: skip
            new_peak = tl.maximum(peak, peak_of(z, c, C))
            norm = norm * tl.exp(peak - new_peak) + tl.sum(exp_scores(z, new_peak, c, C), axis=0)
            peak = new_peak
    for block in range(0, C, BLOCK_C):  # once if HELD
        c = block + first
        if not HELD:
            z = load_tile(
                scores, b, c, C, p, P, width, batch_stride, class_stride, row_stride, pixel_stride, LINEAR, ACC
            )  # fmt: skip
            e = exp_scores(z, peak, c, C)
        derivative = e / norm[None, :] - (c[:, None] == label[None, :]).to(ACC)
        store_tile(
            grad_scores, derivative * weight[None, :], b, c, C, p, P, width,
            grad_batch, grad_class, grad_row, grad_pixel, LINEAR,
        )  # fmt: skip


def _tile(classes: int, pixels: int) -> tuple[dict[str, int], int]:
    """How many classes and pixels a program holds at a time and by how many warps; and the tiles of an image."""
    block_c = class_block(classes, MAX_HELD_CLASSES if classes <= MAX_HELD_CLASSES else BLOCK_CLASSES)
    many = block_c > 32
    block_p = min((TILE_MANY_CLASSES if many else TILE) // block_c, max(32, triton.next_power_of_2(pixels)))
    return {"BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": 8 if many else 4}, triton.cdiv(pixels, block_p)


def _labels_lie(scores: Tensor, labels: Tensor, counts: Tensor, image_labels: Tensor) -> tuple[int, ...]:
    """Width of the map; strides of labels, counts and image-level labels."""
    batch_stride, _, row_stride, pixel_stride = strides(labels[:, None])
    return scores.shape[3], batch_stride, row_stride, pixel_stride, *counts.stride(), *image_labels.stride()


def balanced_cross_entropy(
    scores: Tensor, labels: Tensor, counts: Tensor, image_labels: Tensor, ignore_index: int
) -> Tensor:
    batch, classes, height, width = scores.shape
    dtype, acc = accumulator(scores)
    tile, tiles = _tile(classes, height * width)
    sums = scores.new_empty((batch, tiles), dtype=dtype)
    gates = numbers(image_labels)
    if batch:
        with on_device_of(scores):
            _balanced_cross_entropy_fwd_kernel[(batch * tiles,)](
                scores, labels, counts, gates, sums, classes, height * width, tiles, labels.numel(), ignore_index,
                *_labels_lie(scores, labels, counts, gates), *strides(scores),
                LINEAR=linear(scores, labels[:, None]), ACC=acc, **tile,
            )  # fmt: skip
    return sums.sum()


def balanced_cross_entropy_backward(
    grad: Tensor, scores: Tensor, labels: Tensor, counts: Tensor, image_labels: Tensor, ignore_index: int
) -> Tensor:
    """grad_scores, laid out as `torch.empty_like(scores)`."""
    batch, classes, height, width = scores.shape
    grad_scores = torch.empty_like(scores)
    _, acc = accumulator(grad, scores)
    tile, tiles = _tile(classes, height * width)
    gates = numbers(image_labels)
    if batch:
        with on_device_of(scores):
            _balanced_cross_entropy_bwd_kernel[(batch * tiles,)](
                grad, scores, labels, counts, gates, grad_scores, classes, height * width, tiles, labels.numel(),
                ignore_index, *_labels_lie(scores, labels, counts, gates), *strides(scores), *strides(grad_scores),
                LINEAR=linear(scores, labels[:, None], grad_scores), HELD=classes <= MAX_HELD_CLASSES, ACC=acc, **tile,
            )  # fmt: skip
    return grad_scores

"""Losses and labels at the image's size from logits at feature resolution, in Triton.

The upsampled logits (bilinear, corners not aligned) are worked out where they are needed and never stored. The gradient
is gathered: a program visits all pixels of the image that its low-resolution pixels influence, so that each sum has one
owner and one order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, class_block, map_of, on_device_of, tile_for
from ._math import first_from, half_pixels, interpolable, interpolated, log1p, mix, sigmoid, soft_margin
from ._tiles import carries_class, class_rows, exp_scores, load_labels, no_peak, peak_of, softmax_step

# A thread holds 16 upsampled logits, each made of four low-resolution ones.
BLOCK_CLASSES = 16
MAX_PIXELS = 256
# A thread holds fewer where it visits what a low-resolution pixel influences, because it keeps sums and four addresses
# of each. Visits are low-resolution pixels times pixels of the image that they influence. With 128, the cross-entropy
# takes up to 120 registers instead of 94 and spills on sm_80 (bfloat16, 128 classes); with 64, the soft-margin loss
# spills on sm_90, where the compiler then aims at 64 to 80 registers.
VISITS = 128
CROSS_ENTROPY_VISITS = 64
GRAD_CLASSES = 4
MAX_COLUMNS = 32  # of one row that a low-resolution pixel influences: all of them when upsampling 16 times
BLOCK_SUMS = tl.constexpr(1024)


@triton.jit
def _logits(at, there, ACC: tl.constexpr):
    return interpolable(tl.load(at, mask=there, other=0.0).to(ACC), ACC)


@triton.jit
def _upsampled_tile(logits, b, c, C, rows, columns, inside, ACC: tl.constexpr):
    """Upsampled logits (classes, pixels), 0 from class C on and for pixels not inside.

    `rows` and `columns` say where the pixels lie, as `half_pixels` does.
    """
    top, bottom, down = rows
    left, right, along = columns
    top, bottom, left, right = top * logits.row, bottom * logits.row, left * logits.pixel, right * logits.pixel
    of_class = class_rows(logits, b, c)
    there = (c < C)[:, None] & inside[None, :]
    near = mix(
        _logits(of_class + (top + left)[None, :], there, ACC),
        _logits(of_class + (bottom + left)[None, :], there, ACC),
        down[None, :],
    )
    far = mix(
        _logits(of_class + (top + right)[None, :], there, ACC),
        _logits(of_class + (bottom + right)[None, :], there, ACC),
        down[None, :],
    )
    return interpolated(mix(near, far, along[None, :]), ACC)


@triton.jit
def _reach(k, small, large, BOTH_SIDES: tl.constexpr):
    """The points from `begin` to before `end` of `large` lie right behind point k of `small`, or on either side of it.

    Those before point 0 count as behind it.
    """
    begin = first_from(k - 1, small, large) if BOTH_SIDES else first_from(k, small, large)
    return tl.where(k == 0, 0, begin), first_from(k + 1, small, large)


@triton.jit
def _share(k, between):
    """What the low-resolution point k contributes to points that lie as `half_pixels` says."""
    before, after, weight = between
    return tl.where(before == k, 1.0 - weight, 0.0) + tl.where(after == k, weight, 0.0)


@triton.jit
def _upsampled_loss_fwd_kernel(
    logits,  # (B, C, H, W), any strides
    labels,  # (B, H', W') integers, any strides
    peaks,  # (B, P'): highest logit of each pixel, as norms; None for the soft-margin loss
    norms,  # 1 / sum of exponentials
    sums,  # (programs,): what the pixels owned by a program add to the soft-margin loss, else None
    derivative,  # (B, C, H, W) of the sum over pixels, or None
    C,
    height,
    width,
    large_height,
    large_width,
    total,
    ignore_index,
    column_blocks,
    class_blocks,
    columns,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
):
    """The soft-margin loss and its derivative, or the derivative of the cross-entropy.

    A program takes BLOCK_X pixels of a low-resolution row and BLOCK_C classes, and visits the pixels of the image that
    these influence, BLOCK_K columns of each at a time. A low-resolution pixel owns those whose source lies right behind
    it: they add to its loss. Without a derivative, only these are visited.
    """
    program = tl.program_id(0)
    c = program % class_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    column_block = program // class_blocks % column_blocks
    row = program // class_blocks // column_blocks
    i = row % height
    b = (row // height).to(tl.int64)
    visit = tl.arange(0, BLOCK_X * BLOCK_K)
    j = column_block * BLOCK_X + visit // BLOCK_K
    begin, end = _reach(j, width, large_width, derivative is not None)
    end = tl.where(j < width, end, begin)
    first_row, end_row = _reach(i, height, large_height, derivative is not None)
    loss = tl.zeros((BLOCK_C, BLOCK_X * BLOCK_K), ACC)
    gradient = tl.zeros((BLOCK_C, BLOCK_X * BLOCK_K), ACC)
    for large_row in range(first_row, end_row):
        y = tl.zeros((), tl.int64) + large_row
        top, bottom, down = half_pixels(y, height, large_height, ACC)
        for start in range(0, columns, BLOCK_K):
            x = begin + start + visit % BLOCK_K
            left, right, along = half_pixels(x, width, large_width, ACC)
            visited = x < end
            at = labels.data + b * labels.batch + y * labels.row + x * labels.pixel
            label = tl.load(at, mask=visited, other=0).to(tl.int64)
            visited = visited & carries_class(label, C, ignore_index)
            rows = (top, bottom, down + tl.zeros_like(along))
            s = _upsampled_tile(logits, b, c, C, rows, (left, right, along), visited, ACC)
            own = (c[:, None] == label[None, :]).to(ACC)
            counted = (c < C)[:, None] & visited[None, :]
            if peaks is None:
                owned = counted & ((left == j) & (top == i))[None, :]
                loss += tl.where(owned, soft_margin(s, own), 0.0)
                d = sigmoid(s) - own
            else:
                pixel = (b * large_height + y) * large_width + x
                peak = tl.load(peaks + pixel, mask=visited, other=0.0)
                norm = tl.load(norms + pixel, mask=visited, other=0.0)
                d = exp_scores(s, peak, c, C) * norm[None, :] - own
            if derivative is not None:
                share = _share(j, (left, right, along)) * _share(i, (top, bottom, down))
                gradient += tl.where(counted, d * share[None, :], 0.0)
    if sums is not None:
        tl.store(sums + program, tl.sum(tl.sum(loss, axis=1), axis=0) / total)
    if derivative is not None:
        gathered = tl.sum(tl.reshape(gradient, (BLOCK_C, BLOCK_X, BLOCK_K)), axis=2)
        j = column_block * BLOCK_X + tl.arange(0, BLOCK_X)
        to = derivative + ((b * C + c[:, None]) * height + i) * width + j[None, :]
        tl.store(to, gathered, mask=(c < C)[:, None] & (j < width)[None, :])


@triton.jit
def _upsampled_cross_entropy_fwd_kernel(
    logits,  # (B, C, H, W), any strides
    labels,  # (B, H', W') integers, any strides
    peaks,  # (B, P'): highest logit of each pixel, as norms; or None
    norms,  # 1 / sum of exponentials
    sums,  # (B, tiles, 2): sum of the losses of a tile, and pixels with a class
    C,
    height,
    width,
    large_height,
    large_width,
    tiles,
    ignore_index,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    P = large_height * large_width
    rows = half_pixels(p // large_width, height, large_height, ACC)
    columns = half_pixels(p % large_width, width, large_width, ACC)
    label = load_labels(labels, b, p, P, large_width, C, ignore_index, LINEAR=False)
    peak = no_peak(BLOCK_P, ACC)
    norm = tl.zeros((BLOCK_P,), ACC)
    own = tl.zeros((BLOCK_P,), ACC)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        s = _upsampled_tile(logits, b, c, C, rows, columns, p < P, ACC)
        peak, norm = softmax_step(peak, norm, s, c, C)
        own += tl.sum(tl.where(c[:, None] == label[None, :], s, 0.0), axis=0)
    counted = label >= 0
    loss = tl.where(counted, log1p(norm - 1.0) + (peak - own), 0.0)
    tl.store(sums + program.to(tl.int64) * 2, tl.sum(loss, axis=0))
    tl.store(sums + program.to(tl.int64) * 2 + 1, tl.sum(counted.to(ACC), axis=0))
    if peaks is not None:
        tl.store(peaks + b * P + p, peak, mask=p < P)
        tl.store(norms + b * P + p, 1.0 / norm, mask=p < P)


@triton.jit
def _upsampled_cross_entropy_finish_kernel(
    sums,  # (tiles, 2)
    loss,  # sum of the losses / counted
    counted,  # pixels with a class, at least 1
    tiles,
    ACC: tl.constexpr,
):
    total = tl.zeros((BLOCK_SUMS,), ACC)
    pixels = tl.zeros((BLOCK_SUMS,), ACC)
    for start in range(0, tiles, BLOCK_SUMS):
        t = start + tl.arange(0, BLOCK_SUMS).to(tl.int64)
        total += tl.load(sums + 2 * t, mask=t < tiles, other=0.0)
        pixels += tl.load(sums + 2 * t + 1, mask=t < tiles, other=0.0)
    n = tl.maximum(tl.sum(pixels, axis=0), 1.0)
    tl.store(counted, n)
    tl.store(loss, tl.sum(total, axis=0) / n)


@triton.jit
def _upsampled_argmax_fwd_kernel(
    logits,  # (B, C, H, W), any strides
    labels,  # (B, P')
    C,
    height,
    width,
    large_height,
    large_width,
    tiles,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    P = large_height * large_width
    rows = half_pixels(p // large_width, height, large_height, ACC)
    columns = half_pixels(p % large_width, width, large_width, ACC)
    highest = tl.full((BLOCK_P,), -float("inf"), ACC)
    best = tl.zeros((BLOCK_P,), tl.int32)
    undefined = tl.zeros((BLOCK_P,), tl.int32) + C  # the first class that is NaN, which is above all
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        s = _upsampled_tile(logits, b, c, C, rows, columns, p < P, ACC)
        peak = peak_of(s, c, C)
        first = tl.min(tl.where((s == peak[None, :]) & (c < C)[:, None], c[:, None], C), axis=0)
        undefined = tl.minimum(undefined, tl.min(tl.where((s != s) & (c < C)[:, None], c[:, None], C), axis=0))
        best = tl.where(peak > highest, first, best)
        highest = tl.maximum(highest, peak)
    best = tl.where(undefined < C, undefined, best)
    tl.store(labels + b * P + p, best.to(labels.dtype.element_ty), mask=p < P)


def _visits(logits: Tensor, labels: Tensor, visits: int, both_sides: bool) -> tuple[int, dict[str, int]]:
    """How many programs visit the pixels behind the low-resolution ones, or on both sides; and what each of them takes.

    `visits` is the most that a program visits at a time.
    """
    batch, classes, height, width = logits.shape
    large_width = labels.shape[2]
    # The columns on either side of a low-resolution pixel, or behind it: one and a half of the first.
    columns = triton.cdiv(2 * large_width, width) if both_sides else triton.cdiv(3 * large_width, 2 * width)
    block_k = min(MAX_COLUMNS, triton.next_power_of_2(columns))
    block_x = min(visits // block_k, triton.next_power_of_2(width))
    block_c = class_block(classes, GRAD_CLASSES)
    column_blocks, class_blocks = triton.cdiv(width, block_x), triton.cdiv(classes, block_c)
    return batch * height * column_blocks * class_blocks, {
        "column_blocks": column_blocks,
        "class_blocks": class_blocks,
        "columns": columns,
        "BLOCK_C": block_c,
        "BLOCK_X": block_x,
        "BLOCK_K": block_k,
        "num_warps": 4,
    }


def upsampled_soft_margin_loss(
    logits: Tensor, labels: Tensor, ignore_index: int, with_derivative: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and the derivative of the sum over pixels (B, C, H, W) if asked."""
    dtype, acc = accumulator(logits)
    derivative = logits.new_empty(logits.shape if with_derivative else 0, dtype=dtype)
    if logits.shape[0] == 0:
        return logits.new_zeros((), dtype=dtype), derivative
    programs, blocks = _visits(logits, labels, VISITS, with_derivative)
    sums = logits.new_empty(programs, dtype=dtype)
    with on_device_of(logits):
        _upsampled_loss_fwd_kernel[(programs,)](
            map_of(logits), map_of(labels), None, None, sums, derivative if with_derivative else None,
            *logits.shape[1:], *labels.shape[1:], labels.numel(), ignore_index, ACC=acc, **blocks,
        )  # fmt: skip
    return sums.sum(), derivative


def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, with_derivative: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; the pixels with a class, at least 1; the derivative of the sum over pixels (B, C, H, W) if asked."""
    batch, classes, _, _ = logits.shape
    dtype, acc = accumulator(logits)
    derivative = logits.new_empty(logits.shape if with_derivative else 0, dtype=dtype)
    if batch == 0:
        return logits.new_zeros((), dtype=dtype), logits.new_ones((), dtype=dtype), derivative
    loss, counted = (logits.new_empty((), dtype=dtype) for _ in range(2))
    peaks, norms = (logits.new_empty(labels.shape, dtype=dtype) if with_derivative else None for _ in range(2))
    tile = tile_for(classes, MAX_PIXELS, most=BLOCK_CLASSES)
    tiles = triton.cdiv(labels.shape[1] * labels.shape[2], tile["BLOCK_P"])
    sums = logits.new_empty((batch * tiles, 2), dtype=dtype)
    s, own, sizes = map_of(logits), map_of(labels), (*logits.shape[1:], *labels.shape[1:])
    with on_device_of(logits):
        _upsampled_cross_entropy_fwd_kernel[(batch * tiles,)](
            s, own, peaks, norms, sums, *sizes, tiles, ignore_index, ACC=acc, **tile
        )
        _upsampled_cross_entropy_finish_kernel[(1,)](sums, loss, counted, batch * tiles, ACC=acc, num_warps=4)
        if with_derivative:
            programs, blocks = _visits(logits, labels, CROSS_ENTROPY_VISITS, both_sides=True)
            _upsampled_loss_fwd_kernel[(programs,)](
                s, own, peaks, norms, None, derivative, *sizes, labels.numel(), ignore_index, ACC=acc, **blocks
            )
    return loss, counted, derivative


def upsampled_argmax(logits: Tensor, height: int, width: int) -> Tensor:
    """Classes (B, height, width), uint8 up to 255 of them, else int64."""
    batch, classes, _, _ = logits.shape
    dtype = torch.int64 if classes > 255 else torch.uint8
    labels = torch.empty((batch, height, width), dtype=dtype, device=logits.device)
    if batch == 0:
        return labels
    _, acc = accumulator(logits)
    tile = tile_for(classes, MAX_PIXELS, most=BLOCK_CLASSES)
    tiles = triton.cdiv(height * width, tile["BLOCK_P"])
    with on_device_of(logits):
        _upsampled_argmax_fwd_kernel[(batch * tiles,)](
            map_of(logits), labels, *logits.shape[1:], height, width, tiles, ACC=acc, **tile
        )
    return labels

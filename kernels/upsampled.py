"""Losses and labels at the image's size from logits at feature resolution, in Triton.

The upsampled logits (bilinear) are worked out where they are needed and never stored. A thread has
a column of the image: it interpolates two rows of low resolution there, and the pixels between them from these. The
gradient is gathered: a program visits all pixels of the image that its low-resolution rows influence, so that each sum
has one owner and one order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, class_block, map_of, on_device_of
from ._math import between, first_from, interpolable, interpolated, log1p, lowest, mix, times_one_plus, weight_after
from ._tiles import carries_class, class_rows, no_peak

# Losses and labels: a thread holds 16 upsampled logits, of up to 8 pixels of a column.
LOGITS = 16
MAX_ROWS = 8
MAX_COLUMNS = 128
# Gradients: a thread has one column and 8 classes, whose logits and sums take 32 registers. Fewer classes would read
# the labels more often.
GRAD_CLASSES = 8
MAX_VISITS = 512
GRAD_ROWS = 4  # of low resolution; the pixels above the first are visited by two programs
# With the peaks to store, ptxas makes do with 96 registers of its own accord on sm_90 and spills at 128 classes.
PEAKS_REGISTERS = 128
PRODUCT_ROWS = tl.constexpr(8)  # of a product of 1 + e over the classes and them, which is at most 2^64 then
BLOCK_SUMS = tl.constexpr(1024)


class Sizes(NamedTuple):
    """Of the logits and of the labels, as a kernel takes them."""

    height: int
    width: int
    large_height: int
    large_width: int


@triton.jit
def _row(classes, row, columns, there, ACC: tl.constexpr):
    """A low-resolution row (classes, columns), the lowest number where nothing is there.

    `columns` are the offsets of the pixels left and right of each column, and the weight of the latter.
    """
    left, right, along = columns
    near = tl.load(classes + (row + left)[None, :], mask=there, other=-float("inf")).to(ACC)
    far = tl.load(classes + (row + right)[None, :], mask=there, other=-float("inf")).to(ACC)
    return mix(interpolable(near, ACC), interpolable(far, ACC), along[None, :])


@triton.jit
def _labels(labels, b, y, x, inside, C, ignore_index):
    """The classes of pixels, -1 for a pixel that carries none."""
    at = labels.data + b * labels.batch + y * labels.row + x.to(tl.int64) * labels.pixel
    label = tl.load(at, mask=inside, other=0).to(tl.int64)
    return tl.where(inside & carries_class(label, C, ignore_index), label, -1).to(tl.int32)


@triton.jit(do_not_specialize=["total"])
def _upsampled_loss_fwd_kernel(
    logits,  # (B, C, H, W), any strides
    labels,  # (B, H', W') integers, any strides
    peaks,  # (B, H', W'): highest logit of each pixel, as norms; None for the soft-margin loss
    norms,  # 1 / sum of exponentials
    sums,  # (programs,): what the pixels owned by a program add to the soft-margin loss, else None
    derivative,  # (B, C, H, W) of the sum over pixels, or None
    C,
    sizes,
    total,
    ignore_index,
    column_blocks,
    row_blocks,
    class_blocks,
    ROWS: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ALIGNED: tl.constexpr,
    ACC: tl.constexpr,
):
    """The soft-margin loss and its derivative, or the derivative of the cross-entropy.

    A program owns ROWS low-resolution rows, BLOCK_C classes, and what lies right of and below their pixels. Each of its
    lanes goes down one of BLOCK_K columns right of a pixel, for a derivative from the row above the first on. The
    pixels of a row are a ring: right of the last come the columns behind it and those before the first. A program
    either has the WHOLE ring, or an arc whose ends belong to its neighbours.
    """
    program = tl.program_id(0)
    c = program % class_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    column_block = program // class_blocks % column_blocks
    above = program // class_blocks // column_blocks % row_blocks * ROWS
    b = (program // class_blocks // column_blocks // row_blocks).to(tl.int64)
    arc = sizes.width if WHOLE else BLOCK_X
    begin = 0 if WHOLE else column_block * (BLOCK_X - 2) + sizes.width - 1
    lane = tl.arange(0, BLOCK_X)
    pixel = (begin + lane) % sizes.width

    visit = tl.arange(0, BLOCK_X * BLOCK_K)
    here = visit // BLOCK_K
    j = (begin + here) % sizes.width
    last = j == sizes.width - 1
    x = first_from(j, sizes.width, sizes.large_width, ALIGNED) + visit % BLOCK_K
    end = first_from(tl.where(last, 0, j + 1), sizes.width, sizes.large_width, ALIGNED) + tl.where(
        last, sizes.large_width, 0
    )
    inside = (x < end) & (here < (arc if WHOLE else arc - 1))
    before = x >= sizes.large_width  # the first pixel
    x = tl.where(before, x - sizes.large_width, x)
    left = tl.where(before, 0, j).to(tl.int64) * logits.pixel
    right = tl.where(last, tl.where(before, 0, j), j + 1).to(tl.int64) * logits.pixel
    along = tl.where(last, before.to(ACC), weight_after(x, j, sizes.width, sizes.large_width, ALIGNED, ACC))
    columns = (left, right, along)
    there = (c < C)[:, None] & inside[None, :]
    classes = class_rows(logits, b, c)
    owned = inside if WHOLE else inside & (here > 0) & (column_block * (BLOCK_X - 2) + here <= sizes.width)

    row_begin = above if derivative is None else tl.maximum(above - 1, 0)
    loss = tl.zeros((BLOCK_X * BLOCK_K,), ACC)
    gradient = tl.zeros((BLOCK_C, BLOCK_X * BLOCK_K), ACC)
    bottom = _row(classes, row_begin.to(tl.int64) * logits.row, columns, there, ACC)
    for i in range(row_begin, tl.minimum(above + ROWS, sizes.height)):
        row = tl.zeros((), tl.int64) + i
        top = bottom
        bottom = _row(classes, tl.minimum(row + 1, sizes.height - 1) * logits.row, columns, there, ACC)
        linear = tl.zeros_like(loss)
        product = tl.zeros_like(loss)
        below = tl.zeros_like(gradient)
        y_begin = tl.where(row == 0, 0, first_from(row, sizes.height, sizes.large_height, ALIGNED))
        for k in range(y_begin, first_from(row + 1, sizes.height, sizes.large_height, ALIGNED)):
            y = tl.zeros((), tl.int64) + k
            label = _labels(labels, b, y, x, inside, C, ignore_index)
            own = c[:, None] == label[None, :]
            down = weight_after(y, row, sizes.height, sizes.large_height, ALIGNED, ACC)
            s = mix(top, bottom, down)
            if peaks is None:
                # sigmoid(s) - 1 is -sigmoid(-s)
                s = tl.where((label >= 0)[None, :], tl.where(own, -s, s), lowest(ACC))
                e = tl.exp(-tl.abs(s))
                d = tl.where(s >= 0, 1.0, e) / (1.0 + e)
                d = tl.where(own, -d, d)
                linear += tl.sum(tl.maximum(s, 0.0), axis=0)
                product = times_one_plus(product, tl.reduce(e, 0, times_one_plus))
                if (k - y_begin) % PRODUCT_ROWS == PRODUCT_ROWS - 1:
                    linear += log1p(product)
                    product = tl.zeros_like(product)
            else:
                at = (b * sizes.large_height + y) * sizes.large_width + x
                peak = tl.load(peaks + at, mask=label >= 0, other=0.0)
                norm = tl.load(norms + at, mask=label >= 0, other=0.0)
                d = tl.exp(s - peak[None, :]) * norm[None, :]
                d = tl.where((label >= 0)[None, :], tl.where(own, d - 1.0, d), 0.0)
            if derivative is not None:
                gradient = tl.fma(d, tl.broadcast_to(1.0 - down, d.shape), gradient)
                below = tl.fma(d, tl.broadcast_to(down, d.shape), below)
        if sums is not None:
            loss += tl.where(owned & (row >= above), linear + log1p(product), 0.0)
        if derivative is not None:
            if row == sizes.height - 1:  # below the last row comes itself
                gradient += below
            if row >= above:
                near = tl.reshape(gradient * (1.0 - along)[None, :], (BLOCK_C, BLOCK_X, BLOCK_K))
                far = tl.reshape(gradient * along[None, :], (BLOCK_C, BLOCK_X, BLOCK_K))
                preceding = tl.broadcast_to(((lane + arc - 1) % arc)[None, :], (BLOCK_C, BLOCK_X))
                gathered = tl.sum(near, axis=2) + tl.gather(tl.sum(far, axis=2), preceding, axis=1)
                to = derivative + ((b * C + c[:, None]) * sizes.height + row) * sizes.width + pixel[None, :]
                mine = lane < arc
                if not WHOLE:
                    mine = (lane > 0) & (lane < arc - 1) & (column_block * (BLOCK_X - 2) + lane <= sizes.width)
                tl.store(to, gathered, mask=(c < C)[:, None] & mine[None, :])
            gradient = below
    if sums is not None:
        tl.store(sums + program, tl.sum(-interpolated(-loss, ACC), axis=0) / total)


@triton.jit
def _run(
    logits, program, column_blocks, runs, runs_of_row, sizes,
    BANDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ALIGNED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The pixels (BANDS ROWS COLUMNS,) that a program takes: rows between the same two of low resolution, or three.

    Returns the image; row and column of each pixel, and whether it exists; the first low-resolution row; the weight of
    the row below each pixel; and the columns as `_row` takes them.
    """
    b = (program // column_blocks // runs).to(tl.int64)
    run = program // column_blocks % runs
    p = tl.arange(0, BANDS * ROWS * COLUMNS)
    if ROWS == 1:  # rows may lie further apart than those of low resolution
        y = run.to(tl.int64) + p // COLUMNS
        first, _, _ = between(run, sizes.height, sizes.large_height, ALIGNED, ACC)
        above = first
        end = sizes.large_height
    else:
        first = (run // runs_of_row * BANDS - 1).to(tl.int64)  # -1 stands for row 0, which the pixels before it are of
        k = first + p // (ROWS * COLUMNS)
        y = first_from(k, sizes.height, sizes.large_height, ALIGNED) + run % runs_of_row * ROWS + p // COLUMNS % ROWS
        above = tl.maximum(k, 0)
        end = first_from(k + 1, sizes.height, sizes.large_height, ALIGNED)
    begin = program % column_blocks * COLUMNS
    x = begin + p % COLUMNS
    inside = (y < end) & (x < sizes.large_width)
    column = tl.minimum(begin + tl.arange(0, COLUMNS), sizes.large_width - 1)
    left, right, along = between(column, sizes.width, sizes.large_width, ALIGNED, ACC)
    columns = (left * logits.pixel, right * logits.pixel, along)
    return b, y, x, inside, first, weight_after(y, above, sizes.height, sizes.large_height, ALIGNED, ACC), columns


@triton.jit
def _run_tile(logits, b, c, C, first, down, columns, sizes, BANDS: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr):
    """Upsampled logits (classes, pixels) of the pixels of `_run`; the lowest number from class C on."""
    classes = class_rows(logits, b, c)
    there = (c < C)[:, None]
    last = sizes.height - 1
    near = _row(classes, tl.maximum(first, 0) * logits.row, columns, there, ACC)
    far = _row(classes, tl.minimum(first + 1, last) * logits.row, columns, there, ACC)
    top, bottom = near[:, None, :], far[:, None, :]
    if BANDS == 2:
        there = there & (first + 1 < sizes.height)  # else the second band has no pixels
        below = _row(classes, tl.minimum(first + 2, last) * logits.row, columns, there, ACC)
        top = tl.permute(tl.join(near, far), (0, 2, 1))
        bottom = tl.permute(tl.join(far, below), (0, 2, 1))
    return mix(_every_row(top, ROWS), _every_row(bottom, ROWS), down[None, :])


@triton.jit
def _every_row(tile, ROWS: tl.constexpr):
    """A tile (classes, bands, columns) as (classes, bands ROWS columns)."""
    classes: tl.constexpr = tile.shape[0]
    bands: tl.constexpr = tile.shape[1]
    columns: tl.constexpr = tile.shape[2]
    every = tl.broadcast_to(tile[:, :, None, :], (classes, bands, ROWS, columns))
    return tl.reshape(every, (classes, bands * ROWS * columns))


@triton.jit
def _upsampled_cross_entropy_fwd_kernel(
    logits,  # (B, C, H, W), any strides
    labels,  # (B, H', W') integers, any strides
    peaks,  # (B, H', W'): highest logit of each pixel, as norms; or None
    norms,  # 1 / sum of exponentials
    sums,  # (programs, 2): sum of the losses of a program, and pixels with a class
    C,
    sizes,
    ignore_index,
    column_blocks,
    runs,
    runs_of_row,
    BANDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALIGNED: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b, y, x, inside, first, down, columns = _run(
        logits, program, column_blocks, runs, runs_of_row, sizes, BANDS, ROWS, COLUMNS, ALIGNED, ACC
    )
    label = _labels(labels, b, y, x, inside, C, ignore_index)
    peak = no_peak(BANDS * ROWS * COLUMNS, ACC)
    norm = tl.zeros((BANDS * ROWS * COLUMNS,), ACC)
    own = tl.zeros((BANDS * ROWS * COLUMNS,), ACC)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        s = _run_tile(logits, b, c, C, first, down, columns, sizes, BANDS, ROWS, ACC)
        higher = tl.maximum(peak, tl.max(s, axis=0))
        norm = norm * tl.exp(peak - higher) + tl.sum(tl.exp(s - higher[None, :]), axis=0)
        peak = higher
        own += tl.sum(tl.where(c[:, None] == label[None, :], s, 0.0), axis=0)
    peak = interpolated(peak, ACC)
    norm += peak - peak  # NaN if the softmax is
    counted = label >= 0
    loss = tl.where(counted, log1p(norm - 1.0) + (peak - interpolated(own, ACC)), 0.0)
    tl.store(sums + program.to(tl.int64) * 2, tl.sum(loss, axis=0))
    tl.store(sums + program.to(tl.int64) * 2 + 1, tl.sum(counted.to(ACC), axis=0))
    if peaks is not None:
        pixel = (b * sizes.large_height + y) * sizes.large_width + x
        tl.store(peaks + pixel, peak, mask=inside)
        tl.store(norms + pixel, 1.0 / norm, mask=inside)


@triton.jit(do_not_specialize=["tiles"])
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
    labels,  # (B, H', W')
    C,
    sizes,
    column_blocks,
    runs,
    runs_of_row,
    BANDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    ALIGNED: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b, y, x, inside, first, down, columns = _run(
        logits, program, column_blocks, runs, runs_of_row, sizes, BANDS, ROWS, COLUMNS, ALIGNED, ACC
    )
    highest = tl.full((BANDS * ROWS * COLUMNS,), -float("inf"), ACC)
    best = tl.zeros((BANDS * ROWS * COLUMNS,), tl.int32)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        s = _run_tile(logits, b, c, C, first, down, columns, sizes, BANDS, ROWS, ACC)
        peak = tl.reduce(s, 0, _higher)
        highest_class = tl.min(tl.where((s == peak[None, :]) | (s != s), c[:, None], C), axis=0)
        better = (peak > highest) | ((peak != peak) & (highest == highest))
        best = tl.where(better, highest_class, best)
        highest = tl.where(better, peak, highest)
    best = tl.where(interpolated(highest, ACC) == -float("inf"), 0, best)  # all are: the first of equals
    tl.store(
        labels + (b * sizes.large_height + y) * sizes.large_width + x, best.to(labels.dtype.element_ty), mask=inside
    )


@triton.jit
def _higher(p, q):
    """The higher of two numbers; NaN is above all."""
    return tl.maximum(p, q, propagate_nan=tl.PropagateNan.ALL)


def _between(small: int, large: int, aligned: bool) -> int:
    """Points of `large` between two of `small`, at most."""
    return triton.cdiv(large - 1, small - 1) if aligned and small > 1 else triton.cdiv(large, 1 if aligned else small)


def _runs(logits: Tensor, large_height: int, large_width: int, aligned: bool) -> tuple[int, dict[str, int]]:
    """How many programs take all pixels of the image, and what each of them takes."""
    batch, classes, height, _ = logits.shape
    columns = min(MAX_COLUMNS, max(32, triton.next_power_of_2(large_width)))
    apart = _between(height, large_height, aligned)  # rows of the image between two of low resolution
    rows = min(MAX_ROWS, triton.next_power_of_2(apart))
    bands = 2 if 1 < rows < MAX_ROWS else 1
    runs_of_row, column_blocks = triton.cdiv(apart, rows), triton.cdiv(large_width, columns)
    runs = large_height if rows == 1 else triton.cdiv(height + 1, bands) * runs_of_row
    return batch * runs * column_blocks, {
        "column_blocks": column_blocks,
        "runs": runs,
        "runs_of_row": runs_of_row,
        "BANDS": bands,
        "ROWS": rows,
        "COLUMNS": columns,
        "ALIGNED": aligned,
        "BLOCK_C": class_block(classes, LOGITS // (bands * rows)),
        "num_warps": columns // 32,
    }


def _arcs(logits: Tensor, labels: Tensor, aligned: bool) -> tuple[int, dict[str, int]]:
    """How many programs visit all pixels for the losses or derivatives at low resolution; what each of them takes."""
    batch, classes, height, width = logits.shape
    columns = _between(width, labels.shape[2], aligned)  # right of a low-resolution pixel
    block_k = triton.next_power_of_2(columns)
    block_c = class_block(classes, max(1, GRAD_CLASSES * MAX_VISITS // max(MAX_VISITS, 4 * block_k)))
    block_x = min(max(4, MAX_VISITS // block_k), triton.next_power_of_2(width))
    column_blocks = 1 if width <= block_x else triton.cdiv(width, block_x - 2)
    class_blocks = triton.cdiv(classes, block_c)
    row_blocks = triton.cdiv(height, GRAD_ROWS)
    return batch * row_blocks * column_blocks * class_blocks, {
        "column_blocks": column_blocks,
        "row_blocks": row_blocks,
        "class_blocks": class_blocks,
        "ROWS": GRAD_ROWS,
        "WHOLE": width <= block_x,
        "BLOCK_C": block_c,
        "BLOCK_X": block_x,
        "BLOCK_K": block_k,
        "ALIGNED": aligned,
        "num_warps": max(1, min(16, block_x * block_k // 32)),
    }


def upsampled_soft_margin_loss(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, with_derivative: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and the derivative of the sum over pixels (B, C, H, W) if asked."""
    dtype, acc = accumulator(logits)
    derivative = logits.new_empty(logits.shape if with_derivative else 0, dtype=dtype)
    if logits.shape[0] == 0:
        return logits.new_zeros((), dtype=dtype), derivative
    programs, blocks = _arcs(logits, labels, align_corners)
    sizes = Sizes(*logits.shape[2:], *labels.shape[1:])
    sums = logits.new_empty(programs, dtype=dtype)
    with on_device_of(logits):
        _upsampled_loss_fwd_kernel[(programs,)](
            map_of(logits), map_of(labels), None, None, sums, derivative if with_derivative else None,
            logits.shape[1], sizes, labels.numel(), ignore_index, ACC=acc, **blocks,
        )  # fmt: skip
    return sums.sum(), derivative


def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, with_derivative: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; the pixels with a class, at least 1; the derivative of the sum over pixels (B, C, H, W) if asked."""
    batch, classes, _, _ = logits.shape
    dtype, acc = accumulator(logits)
    derivative = logits.new_empty(logits.shape if with_derivative else 0, dtype=dtype)
    if batch == 0:
        return logits.new_zeros((), dtype=dtype), logits.new_ones((), dtype=dtype), derivative
    loss, counted = (logits.new_empty((), dtype=dtype) for _ in range(2))
    peaks, norms = (logits.new_empty(labels.shape, dtype=dtype) if with_derivative else None for _ in range(2))
    programs, blocks = _runs(logits, labels.shape[1], labels.shape[2], align_corners)
    sums = logits.new_empty((programs, 2), dtype=dtype)
    s, own, sizes = map_of(logits), map_of(labels), Sizes(*logits.shape[2:], *labels.shape[1:])
    with on_device_of(logits):
        _upsampled_cross_entropy_fwd_kernel[(programs,)](
            s, own, peaks, norms, sums, classes, sizes, ignore_index, ACC=acc, **blocks,
            maxnreg=PEAKS_REGISTERS if with_derivative else None,
        )  # fmt: skip
        _upsampled_cross_entropy_finish_kernel[(1,)](sums, loss, counted, programs, ACC=acc, num_warps=4)
        if with_derivative:
            programs, blocks = _arcs(logits, labels, align_corners)
            _upsampled_loss_fwd_kernel[(programs,)](
                s, own, peaks, norms, None, derivative, classes, sizes, labels.numel(), ignore_index, ACC=acc, **blocks
            )
    return loss, counted, derivative


def upsampled_argmax(logits: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """Classes (B, height, width), uint8 up to 255 of them, else int64."""
    batch, classes, low_height, low_width = logits.shape
    dtype = torch.int64 if classes > 255 else torch.uint8
    labels = torch.empty((batch, height, width), dtype=dtype, device=logits.device)
    if batch == 0:
        return labels
    _, acc = accumulator(logits)
    programs, blocks = _runs(logits, height, width, align_corners)
    with on_device_of(logits):
        _upsampled_argmax_fwd_kernel[(programs,)](
            map_of(logits), labels, classes, Sizes(low_height, low_width, height, width), ACC=acc, **blocks
        )
    return labels

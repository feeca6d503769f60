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

from ._launch import accumulator, class_block, on_device_of
from ._tiles import exp_scores, log1p, peak_of, read_labels, sigmoid, soft_margin

# Upsampled logits that a program holds: 16 per thread of 4 warps, each made of four low-resolution ones; fewer where it
# visits what a low-resolution pixel influences, and keeps sums and four addresses of each.
TILE = 2048
BLOCK_CLASSES = 16
# Low-resolution pixels times pixels of the image that they influence, of the soft-margin loss and of the cross-entropy,
# and classes. With 128, the cross-entropy takes up to 120 registers instead of 94 and spills on sm_80 (bfloat16, 128
# classes); with 64, the soft-margin loss spills on sm_90, where the compiler then aims at 64 to 80 registers.
VISITS = 128
CROSS_ENTROPY_VISITS = 64
GRAD_CLASSES = 4
MAX_COLUMNS = 32  # of one row that a low-resolution pixel influences: all of them when upsampling 16 times
BLOCK_SUMS = tl.constexpr(1024)


@triton.jit
def _source(i, small, large, ACC: tl.constexpr):
    """Which of `small` points come before and after point i of `large`, and the weight of the latter; in integers."""
    twice = tl.maximum((2 * i.to(tl.int64) + 1) * small - large, 0)
    before = twice // (2 * large)
    weight = (twice - before * (2 * large)).to(ACC) / (2 * large)
    return before, tl.minimum(before + 1, small - 1), weight


@triton.jit
def _first(k, small, large):
    """The first of `large` points whose source lies at point k of `small` or after it."""
    twice = tl.maximum(large * (2 * k.to(tl.int64) + 1) - small, 0)
    return tl.minimum((twice + 2 * small - 1) // (2 * small), large)


@triton.jit
def _reach(k, small, large, BOTH_SIDES: tl.constexpr):
    """The points from `begin` to before `end` of `large` lie right behind point k of `small`, or on either side of it.

    Those before point 0 count as behind it.
    """
    begin = _first(k - 1, small, large) if BOTH_SIDES else _first(k, small, large)
    return tl.where(k == 0, 0, begin), _first(k + 1, small, large)


@triton.jit
def _mix(a, b, weight):
    """a + (b - a) weight, rounded in one way everywhere: a logit has the same bits in every kernel."""
    return tl.fma(tl.broadcast_to(weight, a.shape), b - a, a)


@triton.jit
def _upsampled_tile(
    logits, b, c, C, top, bottom, down, left, right, along, inside,
    batch_stride, class_stride, row_stride, pixel_stride, ACC: tl.constexpr,
):  # fmt: skip
    """Upsampled logits (classes, pixels) between rows and columns; 0 from class C on and for pixels not inside."""
    rows = logits + b * batch_stride + c[:, None].to(tl.int64) * class_stride
    top, bottom, left, right = top * row_stride, bottom * row_stride, left * pixel_stride, right * pixel_stride
    there = (c < C)[:, None] & inside[None, :]
    near = _mix(
        tl.load(rows + (top + left)[None, :], mask=there, other=0.0).to(ACC),
        tl.load(rows + (bottom + left)[None, :], mask=there, other=0.0).to(ACC),
        down[None, :],
    )
    far = _mix(
        tl.load(rows + (top + right)[None, :], mask=there, other=0.0).to(ACC),
        tl.load(rows + (bottom + right)[None, :], mask=there, other=0.0).to(ACC),
        down[None, :],
    )
    return _mix(near, far, along[None, :])


@triton.jit
def _share(k, before, after, weight):
    """What the low-resolution point k contributes to the points that lie between `before` and `after`."""
    return tl.where(before == k, 1.0 - weight, 0.0) + tl.where(after == k, weight, 0.0)


@triton.jit
def _upsampled_loss_kernel(
    logits,  # (B, C, H, W), any strides
    labels,  # (B, H', W') integers, any strides
    peaks,  # (B, P'): highest logit of each pixel, as norms; not read if SOFT_MARGIN
    norms,  # 1 / sum of exponentials, 0 for pixels without a class
    sums,  # (programs,): what the pixels owned by a program add to the loss, if SOFT_MARGIN
    derivative,  # (B, C, H, W) of the sum over pixels, if DERIVATIVE
    C,
    height,
    width,
    large_height,
    large_width,
    column_blocks,
    class_blocks,
    columns,
    total,
    ignore_index,
    batch_stride,
    class_stride,
    row_stride,
    pixel_stride,
    labels_batch,
    labels_row,
    labels_pixel,
    SOFT_MARGIN: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACC: tl.constexpr,
):
    """A program takes BLOCK_X pixels of a low-resolution row and BLOCK_C classes, and visits the pixels of the image
    that these influence, BLOCK_K columns of each at a time. Those whose source lies right behind a low-resolution
    pixel are owned by it: they add to its loss. Without DERIVATIVE, only these are visited.
    """
    program = tl.program_id(0)
    c = program % class_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    column_block = program // class_blocks % column_blocks
    row = program // class_blocks // column_blocks
    i = row % height
    b = (row // height).to(tl.int64)
    visit = tl.arange(0, BLOCK_X * BLOCK_K)
    j = column_block * BLOCK_X + visit // BLOCK_K
    begin, end = _reach(j, width, large_width, DERIVATIVE)
    end = tl.where(j < width, end, begin)
    first_row, end_row = _reach(i, height, large_height, DERIVATIVE)
    loss = tl.zeros((BLOCK_C, BLOCK_X * BLOCK_K), ACC)
    gradient = tl.zeros((BLOCK_C, BLOCK_X * BLOCK_K), ACC)
    for large_row in range(first_row, end_row):
        y = tl.zeros((), tl.int64) + large_row
        top, bottom, down = _source(y, height, large_height, ACC)
        for start in range(0, columns, BLOCK_K):
            x = begin + start + visit % BLOCK_K
            left, right, along = _source(x, width, large_width, ACC)
            visited = x < end
            at = labels + b * labels_batch + y * labels_row + x * labels_pixel
            label = tl.load(at, mask=visited, other=0).to(tl.int64)
            visited = visited & (label != ignore_index) & (label >= 0) & (label < C)
            s = _upsampled_tile(
                logits, b, c, C, top, bottom, down + tl.zeros_like(along), left, right, along, visited,
                batch_stride, class_stride, row_stride, pixel_stride, ACC,
            )  # fmt: skip
            own = (c[:, None] == label[None, :]).to(ACC)
            counted = (c < C)[:, None] & visited[None, :]
            if SOFT_MARGIN:
                owned = counted & ((left == j) & (top == i))[None, :]
                loss += tl.where(owned, soft_margin(s, own), 0.0)
                d = sigmoid(s) - own
            else:
                pixel = (b * large_height + y) * large_width + x
                peak = tl.load(peaks + pixel, mask=visited, other=0.0)
                norm = tl.load(norms + pixel, mask=visited, other=0.0)
                d = exp_scores(s, peak, c, C) * norm[None, :] - own
            if DERIVATIVE:
                share = _share(j, left, right, along) * _share(i, top, bottom, down)
                gradient += tl.where(counted, d * share[None, :], 0.0)
    if SOFT_MARGIN:
        tl.store(sums + program, tl.sum(tl.sum(loss, axis=1), axis=0) / total)
    if DERIVATIVE:
        gathered = tl.sum(tl.reshape(gradient, (BLOCK_C, BLOCK_X, BLOCK_K)), axis=2)
        j = column_block * BLOCK_X + tl.arange(0, BLOCK_X)
        to = derivative + ((b * C + c[:, None]) * height + i) * width + j[None, :]
        tl.store(to, gathered, mask=(c < C)[:, None] & (j < width)[None, :])


@triton.jit
def _upsampled_softmax_kernel(
    logits,  # (B, C, H, W), any strides
    labels,  # (B, H', W') integers, any strides
    peaks,  # (B, P'), as norms; if STATISTICS
    norms,
    sums,  # (B, tiles, 2): sum of the losses of a tile, and pixels with a class
    C,
    height,
    width,
    large_height,
    large_width,
    tiles,
    ignore_index,
    batch_stride,
    class_stride,
    row_stride,
    pixel_stride,
    labels_batch,
    labels_row,
    labels_pixel,
    STATISTICS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    P = large_height * large_width
    top, bottom, down = _source(p // large_width, height, large_height, ACC)
    left, right, along = _source(p % large_width, width, large_width, ACC)
    label = read_labels(
        labels, b, p, P, large_width, labels_batch, labels_row, labels_pixel, C, ignore_index, LINEAR=False
    )  # fmt: skip
    peak = tl.full((BLOCK_P,), -float("inf"), ACC)
    norm = tl.zeros((BLOCK_P,), ACC)
    own = tl.zeros((BLOCK_P,), ACC)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        s = _upsampled_tile(
            logits, b, c, C, top, bottom, down, left, right, along, p < P,
            batch_stride, class_stride, row_stride, pixel_stride, ACC,
        )  # fmt: skip
        new_peak = tl.maximum(peak, peak_of(s, c, C))
        norm = norm * tl.exp(peak - new_peak) + tl.sum(exp_scores(s, new_peak, c, C), axis=0)
        peak = new_peak
        own += tl.sum(tl.where(c[:, None] == label[None, :], s, 0.0), axis=0)
    counted = label >= 0
    loss = tl.where(counted, log1p(norm - 1.0) + (peak - own), 0.0)
    tl.store(sums + program.to(tl.int64) * 2, tl.sum(loss, axis=0))
    tl.store(sums + program.to(tl.int64) * 2 + 1, tl.sum(counted.to(ACC), axis=0))
    if STATISTICS:
        tl.store(peaks + b * P + p, peak, mask=p < P)
        tl.store(norms + b * P + p, 1.0 / norm, mask=p < P)


@triton.jit
def _upsampled_mean_kernel(
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
def _upsampled_argmax_kernel(
    logits,  # (B, C, H, W), any strides
    labels,  # (B, P')
    C,
    height,
    width,
    large_height,
    large_width,
    tiles,
    batch_stride,
    class_stride,
    row_stride,
    pixel_stride,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    P = large_height * large_width
    top, bottom, down = _source(p // large_width, height, large_height, ACC)
    left, right, along = _source(p % large_width, width, large_width, ACC)
    highest = tl.full((BLOCK_P,), -float("inf"), ACC)
    best = tl.zeros((BLOCK_P,), tl.int32)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        s = _upsampled_tile(
            logits, b, c, C, top, bottom, down, left, right, along, p < P,
            batch_stride, class_stride, row_stride, pixel_stride, ACC,
        )  # fmt: skip
        peak = peak_of(s, c, C)
        first = tl.min(tl.where((s == peak[None, :]) & (c < C)[:, None], c[:, None], C), axis=0)
        best = tl.where(peak > highest, first, best)
        highest = tl.maximum(highest, peak)
    tl.store(labels + b * P + p, best.to(labels.dtype.element_ty), mask=p < P)


def _pixel_tile(classes: int, acc: tl.dtype) -> dict[str, object]:
    block_c = class_block(classes, BLOCK_CLASSES)
    return {"BLOCK_C": block_c, "BLOCK_P": min(TILE // block_c, 256), "ACC": acc, "num_warps": 4}


def _visit(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    acc: tl.dtype,
    statistics: tuple[Tensor, Tensor] | None,
    derivative: Tensor | None,
) -> Tensor | None:
    """Fills `derivative`, if any. Returns what adds up to the soft-margin loss, if no statistics are given."""
    batch, classes, height, width = logits.shape
    large_height, large_width = labels.shape[1:]
    soft_margin_loss = statistics is None
    # The columns behind a low-resolution pixel, one and a half of the first, or on either side of it
    columns = triton.cdiv(3 * large_width, 2 * width) if derivative is None else triton.cdiv(2 * large_width, width)
    block_k = min(MAX_COLUMNS, triton.next_power_of_2(columns))
    visits = VISITS if soft_margin_loss else CROSS_ENTROPY_VISITS
    block_x = min(visits // block_k, triton.next_power_of_2(width))
    block_c = class_block(classes, GRAD_CLASSES)
    column_blocks, class_blocks = triton.cdiv(width, block_x), triton.cdiv(classes, block_c)
    programs = batch * height * column_blocks * class_blocks
    sums = torch.empty(
        programs if soft_margin_loss else 1,
        dtype=torch.float64 if acc == tl.float64 else torch.float32,
        device=logits.device,
    )
    peaks, norms = (sums, sums) if statistics is None else statistics
    with on_device_of(logits):
        _upsampled_loss_kernel[(programs,)](
            logits, labels, peaks, norms, sums, sums if derivative is None else derivative,
            classes, height, width, large_height, large_width, column_blocks, class_blocks, columns, labels.numel(),
            ignore_index, *logits.stride(), *labels.stride(),
            SOFT_MARGIN=soft_margin_loss, DERIVATIVE=derivative is not None,
            BLOCK_C=block_c, BLOCK_X=block_x, BLOCK_K=block_k, ACC=acc, num_warps=4,
        )  # fmt: skip
    return sums if soft_margin_loss else None


def upsampled_soft_margin_loss(
    logits: Tensor, labels: Tensor, ignore_index: int, with_derivative: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and the derivative of the sum over pixels (B, C, H, W) if asked."""
    dtype, acc = accumulator(logits)
    derivative = torch.empty(logits.shape if with_derivative else 0, dtype=dtype, device=logits.device)
    if logits.shape[0] == 0:
        return logits.new_zeros((), dtype=dtype), derivative
    sums = _visit(logits, labels, ignore_index, acc, None, derivative if with_derivative else None)
    return sums.sum(), derivative


def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, with_derivative: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; the pixels with a class, at least 1; the derivative of the sum over pixels (B, C, H, W) if asked."""
    batch, classes, height, width = logits.shape
    large_height, large_width = labels.shape[1:]
    dtype, acc = accumulator(logits)
    derivative = torch.empty(logits.shape if with_derivative else 0, dtype=dtype, device=logits.device)
    if batch == 0:
        return logits.new_zeros((), dtype=dtype), logits.new_ones((), dtype=dtype), derivative
    loss, counted = (logits.new_empty((), dtype=dtype) for _ in range(2))
    tile = _pixel_tile(classes, acc)
    tiles = triton.cdiv(large_height * large_width, tile["BLOCK_P"])
    sums = logits.new_empty((batch * tiles, 2), dtype=dtype)
    peaks, norms = (
        logits.new_empty((batch, large_height, large_width) if with_derivative else 1, dtype=dtype) for _ in range(2)
    )
    with on_device_of(logits):
        _upsampled_softmax_kernel[(batch * tiles,)](
            logits, labels, peaks, norms, sums, classes, height, width, large_height, large_width, tiles, ignore_index,
            *logits.stride(), *labels.stride(), STATISTICS=with_derivative, **tile,
        )  # fmt: skip
        _upsampled_mean_kernel[(1,)](sums, loss, counted, batch * tiles, ACC=acc, num_warps=4)
    if with_derivative:
        _visit(logits, labels, ignore_index, acc, (peaks, norms), derivative)
    return loss, counted, derivative


def upsampled_argmax(logits: Tensor, height: int, width: int) -> Tensor:
    """Classes (B, height, width), uint8 up to 255 of them, else int64."""
    batch, classes, low_height, low_width = logits.shape
    dtype = torch.int64 if classes > 255 else torch.uint8
    labels = torch.empty((batch, height, width), dtype=dtype, device=logits.device)
    if batch == 0:
        return labels
    _, acc = accumulator(logits)
    tile = _pixel_tile(classes, acc)
    tiles = triton.cdiv(height * width, tile["BLOCK_P"])
    with on_device_of(logits):
        _upsampled_argmax_kernel[(batch * tiles,)](
            logits, labels, classes, low_height, low_width, height, width, tiles, *logits.stride(), **tile
        )
    return labels

"""How the kernels read and write maps: tiles (classes, pixels), labels, and the softmax over classes.

Maps and matrices come as the tuples of `_launch`. A tile has the classes `c` of image `b` at its pixels `p`; `C` and
`P` are the classes and pixels of the map.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._math import lowest

BLOCK_IMAGES = tl.constexpr(128)  # whose weights a program adds up at a time


@triton.jit
def pixel_offset(m, p, width, LINEAR: tl.constexpr):
    """How far the pixels p lie behind the first one."""
    if LINEAR:
        return p.to(tl.int64) * m.pixel
    return (p // width).to(tl.int64) * m.row + (p % width).to(tl.int64) * m.pixel


@triton.jit
def class_rows(m, b, c):
    """Where the classes begin, as a column."""
    return m.data + b * m.batch + c[:, None].to(tl.int64) * m.channel


@triton.jit
def load_tile(m, b, c, C, p, P, width, LINEAR: tl.constexpr, ACC: tl.constexpr):
    """A tile of a map, 0 from class C and pixel P on."""
    at = class_rows(m, b, c) + pixel_offset(m, p, width, LINEAR)[None, :]
    return tl.load(at, mask=(c < C)[:, None] & (p < P)[None, :], other=0.0).to(ACC)


@triton.jit
def store_tile(m, values, b, c, C, p, P, width, LINEAR: tl.constexpr):
    at = class_rows(m, b, c) + pixel_offset(m, p, width, LINEAR)[None, :]
    tl.store(at, values.to(m.data.dtype.element_ty), mask=(c < C)[:, None] & (p < P)[None, :])


@triton.jit
def carries_class(label, C, ignore_index):
    return (label != ignore_index) & (label >= 0) & (label < C)


@triton.jit
def load_labels(labels, b, p, P, width, C, ignore_index, LINEAR: tl.constexpr):
    """The classes of pixels of a map of integers of any width, -1 for a pixel that carries none."""
    at = labels.data + b * labels.batch + pixel_offset(labels, p, width, LINEAR)
    label = tl.load(at, mask=p < P, other=0).to(tl.int64)
    return tl.where((p < P) & carries_class(label, C, ignore_index), label, -1).to(tl.int32)


@triton.jit
def load_gates(image_labels, b, c, C, ACC: tl.constexpr):
    """The image-level labels (B, C-1), with 1 for the background before them; 0 outside of the classes."""
    row = image_labels.data + b * image_labels.batch + (c - 1).to(tl.int64) * image_labels.channel
    label = tl.load(row, mask=(c > 0) & (c < C), other=0).to(ACC)
    return tl.where(c == 0, 1.0, label)


@triton.jit
def sum_of_weights(image_weight, images, stride, ACC: tl.constexpr):
    total = tl.zeros((BLOCK_IMAGES,), ACC)
    for start in range(0, images, BLOCK_IMAGES):
        i = start + tl.arange(0, BLOCK_IMAGES)
        total += tl.load(image_weight + i.to(tl.int64) * stride, mask=i < images, other=0.0).to(ACC)
    return tl.sum(total, axis=0)


@triton.jit
def peak_of(z, c, C):
    """The highest score of each pixel; classes that fill up the block do not count."""
    return tl.max(tl.where((c < C)[:, None], z, -float("inf")), axis=0)


@triton.jit
def counted_scores(z):
    """The scores as they are weighted: -inf has probability 0 and adds nothing, where 0 times infinity would be NaN."""
    return tl.where(z == -float("inf"), 0.0, z)


@triton.jit
def no_peak(BLOCK_P: tl.constexpr, ACC: tl.constexpr):
    """The peak of no scores, for `softmax_step`: the lowest number, so that -inf adds 0 and nothing else a sum of 0."""
    return tl.full((BLOCK_P,), lowest(ACC), ACC)


@triton.jit
def exp_scores(z, peak, c, C):
    """exp(z - peak), 0 for classes that fill up the block."""
    return tl.exp(tl.where((c < C)[:, None], z - peak[None, :], -float("inf")))


@triton.jit
def softmax_step(peak, norm, z, c, C):
    """Each pixel's highest score and sum of exp(score - highest), with more classes; `no_peak` and 0 of none."""
    higher = tl.maximum(peak, peak_of(z, c, C))
    return higher, norm * tl.exp(peak - higher) + tl.sum(exp_scores(z, higher, c, C), axis=0)


@triton.jit
def softmax_of(
    m, b, C, p, P, width, LINEAR: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, ACC: tl.constexpr
):
    """Each pixel's highest score and sum of exp(score - highest), of classes that go by in blocks."""
    peak = no_peak(BLOCK_P, ACC)
    norm = tl.zeros((BLOCK_P,), ACC)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        peak, norm = softmax_step(peak, norm, load_tile(m, b, c, C, p, P, width, LINEAR, ACC), c, C)
    return peak, norm

"""What the kernels share: tiles (classes, pixels) of a map, and the functions that the losses are made of."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pixel_offset(p, width, row_stride, pixel_stride, LINEAR: tl.constexpr):
    if LINEAR:
        return p.to(tl.int64) * pixel_stride
    return (p // width).to(tl.int64) * row_stride + (p % width).to(tl.int64) * pixel_stride


@triton.jit
def _tile_at(data, b, c, p, width, batch_stride, class_stride, row_stride, pixel_stride, LINEAR: tl.constexpr):
    """Where the classes c at the pixels p of image b of a (B, C, H, W) map lie, by the strides of `_launch.strides`."""
    offset = pixel_offset(p, width, row_stride, pixel_stride, LINEAR)
    return data + b * batch_stride + c[:, None].to(tl.int64) * class_stride + offset[None, :]


@triton.jit
def load_tile(
    data, b, c, C, p, P, width, batch_stride, class_stride, row_stride, pixel_stride,
    LINEAR: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile (classes, pixels) of a map, 0 from class C and pixel P on."""
    at = _tile_at(data, b, c, p, width, batch_stride, class_stride, row_stride, pixel_stride, LINEAR)
    return tl.load(at, mask=(c < C)[:, None] & (p < P)[None, :], other=0.0).to(ACC)


@triton.jit
def store_tile(
    data, values, b, c, C, p, P, width, batch_stride, class_stride, row_stride, pixel_stride, LINEAR: tl.constexpr
):  # fmt: skip
    at = _tile_at(data, b, c, p, width, batch_stride, class_stride, row_stride, pixel_stride, LINEAR)
    tl.store(at, values.to(data.dtype.element_ty), mask=(c < C)[:, None] & (p < P)[None, :])


@triton.jit
def peak_of(z, c, C):
    """The highest score of each pixel; classes that fill up the block do not count."""
    return tl.max(tl.where((c < C)[:, None], z, -float("inf")), axis=0)


@triton.jit
def exp_scores(z, peak, c, C):
    return tl.exp(tl.where((c < C)[:, None], z - peak[None, :], -float("inf")))


@triton.jit
def gates(image_labels, b, c, C, batch_stride, class_stride, ACC: tl.constexpr):
    """What the image-level labels (B, C-1) multiply the classes by: the background by 1. 0 outside of the classes."""
    row = image_labels + b * batch_stride + (c - 1).to(tl.int64) * class_stride
    label = tl.load(row, mask=(c > 0) & (c < C), other=0).to(ACC)
    return tl.where(c == 0, 1.0, label)


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0. What 1 + x rounds off is given back to first order: exact for small x."""
    u = 1.0 + x
    return tl.log(u) + (x - (u - 1.0)) / u


@triton.jit
def soft_margin(s, q):
    """Binary cross-entropy with logits s against q, as max(s, 0) - s q + log(1 + exp(-|s|))."""
    return tl.maximum(s, 0.0) - s * q + log1p(tl.exp(-tl.abs(s)))


@triton.jit
def read_labels(
    labels, b, p, P, width, batch_stride, row_stride, pixel_stride, C, ignore_index, LINEAR: tl.constexpr
):  # fmt: skip
    """The classes of pixels of a (B, H, W) map of integers of any width, -1 for a pixel that carries none."""
    at = labels + b * batch_stride + pixel_offset(p, width, row_stride, pixel_stride, LINEAR)
    label = tl.load(at, mask=p < P, other=0).to(tl.int64)
    carries = (p < P) & (label != ignore_index) & (label >= 0) & (label < C)
    return tl.where(carries, label, -1).to(tl.int32)

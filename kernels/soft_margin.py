"""Binary cross-entropy with logits in Triton: the prior of the old model (LOC) and soft targets (SEG).

With logits s and targets q the loss is max(s, 0) - s q + log(1 + exp(-|s|)), its derivative sigmoid(s) - q. The two ops
differ in their targets (the sigmoid of the old model's logits, or as given) and in what each image is multiplied by.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, linear, map_of, on_device_of, tile_for
from ._math import image_factor, sigmoid, soft_margin
from ._tiles import load_tile, store_tile, sum_of_weights

# Few classes at a time, so that the pixels of each are many in a row. A thread holds 16 elements of each map, which it
# loads by 16 bytes in any dtype, and which leave room for two maps.
BLOCK_CLASSES = 16


@triton.jit
def _factor_of(image_weight, b, total, images, weight_stride, ACC: tl.constexpr):
    """What the sum over image b is multiplied by."""
    if image_weight is None:
        factor = tl.full((), 1.0, ACC) / total
    else:
        weight = tl.load(image_weight + b * weight_stride).to(ACC)
        factor = image_factor(weight, sum_of_weights(image_weight, images, weight_stride, ACC), total)
    return factor


@triton.jit(do_not_specialize=["total", "images"])
def _soft_margin_loss_fwd_kernel(
    logits,  # (B, at least C, H, W), any strides, as targets
    targets,  # (B, C, H, W)
    image_weight,  # (B,) or None
    sums,  # (B, tiles): what the pixels of a tile add to the loss
    C,
    P,
    tiles,
    total,
    images,
    width,
    weight_stride,
    TARGETS_ARE_LOGITS: tl.constexpr,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    loss = tl.zeros((BLOCK_C, BLOCK_P), ACC)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        inside = (c < C)[:, None] & (p < P)[None, :]
        s = load_tile(logits, b, c, C, p, P, width, LINEAR, ACC)
        q = load_tile(targets, b, c, C, p, P, width, LINEAR, ACC)
        if TARGETS_ARE_LOGITS:
            q = sigmoid(q)
        loss += tl.where(inside, soft_margin(s, q), 0.0)
    factor = _factor_of(image_weight, b, total, images, weight_stride, ACC)
    tl.store(sums + program, tl.sum(tl.sum(loss, axis=1), axis=0) * factor)


@triton.jit(do_not_specialize=["total", "images"])
def _soft_margin_loss_bwd_kernel(
    grad,  # of the loss, a scalar
    logits,  # (B, C, H, W), any strides, as targets and grad_logits
    targets,  # (B, T, H, W), T <= C: there is no loss on the other classes
    image_weight,  # (B,) or None
    grad_logits,  # (B, C, H, W)
    C,
    T,
    P,
    tiles,
    total,
    images,
    width,
    weight_stride,
    TARGETS_ARE_LOGITS: tl.constexpr,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    factor = _factor_of(image_weight, b, total, images, weight_stride, ACC) * tl.load(grad).to(ACC)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        inside = (c < T)[:, None] & (p < P)[None, :]
        s = load_tile(logits, b, c, T, p, P, width, LINEAR, ACC)
        q = load_tile(targets, b, c, T, p, P, width, LINEAR, ACC)
        if TARGETS_ARE_LOGITS:
            q = sigmoid(q)
        derivative = tl.where(inside, (sigmoid(s) - q) * factor, 0.0)
        store_tile(grad_logits, derivative, b, c, C, p, P, width, LINEAR)


def localization_prior_loss(scores: Tensor, old_logits: Tensor) -> Tensor:
    return _forward(scores, old_logits, None, old_logits.numel(), targets_are_logits=True)


def localization_prior_loss_backward(grad: Tensor, scores: Tensor, old_logits: Tensor) -> Tensor:
    return _backward(grad, scores, old_logits, None, old_logits.numel(), targets_are_logits=True)


def soft_margin_loss(logits: Tensor, targets: Tensor, image_weight: Tensor | None) -> Tensor:
    return _forward(logits, targets, image_weight, _counted(logits, image_weight), targets_are_logits=False)


def soft_margin_loss_backward(grad: Tensor, logits: Tensor, targets: Tensor, image_weight: Tensor | None) -> Tensor:
    return _backward(grad, logits, targets, image_weight, _counted(logits, image_weight), targets_are_logits=False)


def _counted(logits: Tensor, image_weight: Tensor | None) -> int:
    """The pixels of the mean: of one image if the images are weighted, else of all."""
    batch, _, height, width = logits.shape
    return height * width * (batch if image_weight is None else 1)


def _forward(
    logits: Tensor, targets: Tensor, image_weight: Tensor | None, total: int, *, targets_are_logits: bool
) -> Tensor:
    batch, classes, height, width = targets.shape
    pixels = height * width
    dtype, acc = accumulator(logits, targets, image_weight)
    tile = tile_for(classes, pixels, most=BLOCK_CLASSES)
    tiles = triton.cdiv(pixels, tile["BLOCK_P"])
    sums = logits.new_empty((batch, tiles), dtype=dtype)
    if batch:
        s, q = map_of(logits), map_of(targets)
        with on_device_of(logits):
            _soft_margin_loss_fwd_kernel[(batch * tiles,)](
                s, q, image_weight, sums, classes, pixels, tiles, total, batch, width,
                0 if image_weight is None else image_weight.stride(0),
                TARGETS_ARE_LOGITS=targets_are_logits, LINEAR=linear(s, q), ACC=acc, **tile,
            )  # fmt: skip
    return sums.sum()


def _backward(
    grad: Tensor,
    logits: Tensor,
    targets: Tensor,
    image_weight: Tensor | None,
    total: int,
    *,
    targets_are_logits: bool,
) -> Tensor:
    """grad_logits, laid out as `torch.empty_like(logits)`."""
    batch, classes, height, width = logits.shape
    pixels = height * width
    grad_logits = torch.empty_like(logits)
    _, acc = accumulator(grad, logits, targets, image_weight)
    tile = tile_for(classes, pixels, most=BLOCK_CLASSES)
    tiles = triton.cdiv(pixels, tile["BLOCK_P"])
    if batch:
        s, q, grad_s = map_of(logits), map_of(targets), map_of(grad_logits)
        with on_device_of(logits):
            _soft_margin_loss_bwd_kernel[(batch * tiles,)](
                grad, s, q, image_weight, grad_s, classes, targets.shape[1], pixels, tiles, total, batch, width,
                0 if image_weight is None else image_weight.stride(0),
                TARGETS_ARE_LOGITS=targets_are_logits, LINEAR=linear(s, q, grad_s), ACC=acc, **tile,
            )  # fmt: skip
    return grad_logits

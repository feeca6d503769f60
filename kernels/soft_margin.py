"""Binary cross-entropy with logits in Triton: the prior of the old model (LOC) and soft targets (SEG).

With logits s and targets q, loss max(s, 0) - s q + log(1 + exp(-|s|)) and derivative sigmoid(s) - q. The two ops differ
in their targets (the sigmoid of the old model's logits, or as given) and in what each image is multiplied by.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, class_block, linear, on_device_of, strides
from ._tiles import load_tile, sigmoid, soft_margin, store_tile

# Elements of each map that a program holds at a time: 16 per thread of 4 warps, which are 16 bytes per load and thread
# in any dtype and leave room for two maps. Few classes at a time, so that the pixels of each are many in a row.
TILE = 2048
BLOCK_CLASSES = 16
IMAGE_WEIGHT_EPS = tl.constexpr(1e-5)  # keeps the weighted mean over images finite when no image counts
BLOCK_IMAGES = tl.constexpr(128)


@triton.jit
def _image_factor(image_weight, b, total, images, weight_stride, WEIGHTED: tl.constexpr, ACC: tl.constexpr):
    """What the sum over an image is multiplied by: g_b / (sum g + 1e-5) / total, or without weights 1 / total."""
    factor = tl.full((), 1.0, ACC)
    if WEIGHTED:
        g = tl.zeros((BLOCK_IMAGES,), ACC)
        for start in range(0, images, BLOCK_IMAGES):
            i = start + tl.arange(0, BLOCK_IMAGES)
            g += tl.load(image_weight + i.to(tl.int64) * weight_stride, mask=i < images, other=0.0).to(ACC)
        factor = tl.load(image_weight + b * weight_stride).to(ACC) / (tl.sum(g, axis=0) + IMAGE_WEIGHT_EPS)
    return factor / total


@triton.jit
def _soft_margin_fwd_kernel(
    logits,  # (B, at least C, H, W), any strides, as targets
    targets,  # (B, C, H, W)
    image_weight,  # (B,), or anything if not WEIGHTED
    sums,  # (B, tiles): what the pixels of a tile add to the loss
    C,
    P,
    tiles,
    total,
    images,
    width,
    logits_batch,
    logits_class,
    logits_row,
    logits_pixel,
    targets_batch,
    targets_class,
    targets_row,
    targets_pixel,
    weight_stride,
    TARGETS_ARE_LOGITS: tl.constexpr,
    WEIGHTED: tl.constexpr,
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
        s = load_tile(
            logits, b, c, C, p, P, width, logits_batch, logits_class, logits_row, logits_pixel, LINEAR, ACC
        )  # fmt: skip
        q = load_tile(
            targets, b, c, C, p, P, width, targets_batch, targets_class, targets_row, targets_pixel, LINEAR, ACC
        )  # fmt: skip
        if TARGETS_ARE_LOGITS:
            q = sigmoid(q)
        loss += tl.where(inside, soft_margin(s, q), 0.0)
    factor = _image_factor(image_weight, b, total, images, weight_stride, WEIGHTED, ACC)
    tl.store(sums + program, tl.sum(tl.sum(loss, axis=1), axis=0) * factor)


@triton.jit
def _soft_margin_bwd_kernel(
    grad,  # of the loss, a scalar
    logits,  # (B, C, H, W), any strides, as targets and grad_logits
    targets,  # (B, T, H, W), T <= C: there is no loss on the other classes
    image_weight,  # (B,), or anything if not WEIGHTED
    grad_logits,  # (B, C, H, W)
    C,
    T,
    P,
    tiles,
    total,
    images,
    width,
    logits_batch,
    logits_class,
    logits_row,
    logits_pixel,
    targets_batch,
    targets_class,
    targets_row,
    targets_pixel,
    grad_batch,
    grad_class,
    grad_row,
    grad_pixel,
    weight_stride,
    TARGETS_ARE_LOGITS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    factor = _image_factor(image_weight, b, total, images, weight_stride, WEIGHTED, ACC) * tl.load(grad).to(ACC)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        inside = (c < T)[:, None] & (p < P)[None, :]
        s = load_tile(
            logits, b, c, T, p, P, width, logits_batch, logits_class, logits_row, logits_pixel, LINEAR, ACC
        )  # fmt: skip
        q = load_tile(
            targets, b, c, T, p, P, width, targets_batch, targets_class, targets_row, targets_pixel, LINEAR, ACC
        )  # fmt: skip
        if TARGETS_ARE_LOGITS:
            q = sigmoid(q)
        derivative = tl.where(inside, (sigmoid(s) - q) * factor, 0.0)
        store_tile(
            grad_logits, derivative, b, c, C, p, P, width, grad_batch, grad_class, grad_row, grad_pixel, LINEAR
        )  # fmt: skip


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


def _tile(classes: int, pixels: int) -> tuple[dict[str, int], int]:
    block_c = class_block(classes, BLOCK_CLASSES)
    block_p = min(TILE // block_c, max(32, triton.next_power_of_2(pixels)))
    return {"BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": 4}, triton.cdiv(pixels, block_p)


def _forward(
    logits: Tensor, targets: Tensor, image_weight: Tensor | None, total: int, *, targets_are_logits: bool
) -> Tensor:
    batch, classes, height, width = targets.shape
    dtype, acc = accumulator(logits, targets, image_weight)
    tile, tiles = _tile(classes, height * width)
    sums = logits.new_empty((batch, tiles), dtype=dtype)
    weighted = image_weight is not None
    if batch:
        with on_device_of(logits):
            _soft_margin_fwd_kernel[(batch * tiles,)](
                logits, targets, image_weight if weighted else logits, sums, classes, height * width, tiles, total,
                batch, width, *strides(logits), *strides(targets), image_weight.stride(0) if weighted else 0,
                TARGETS_ARE_LOGITS=targets_are_logits, WEIGHTED=weighted, LINEAR=linear(logits, targets), ACC=acc,
                **tile,
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
    grad_logits = torch.empty_like(logits)
    _, acc = accumulator(grad, logits, targets, image_weight)
    tile, tiles = _tile(classes, height * width)
    weighted = image_weight is not None
    if batch:
        with on_device_of(logits):
            _soft_margin_bwd_kernel[(batch * tiles,)](
                grad, logits, targets, image_weight if weighted else logits, grad_logits, classes, targets.shape[1],
                height * width, tiles, total, batch, width, *strides(logits), *strides(targets), *strides(grad_logits),
                image_weight.stride(0) if weighted else 0, TARGETS_ARE_LOGITS=targets_are_logits, WEIGHTED=weighted,
                LINEAR=linear(logits, targets, grad_logits), ACC=acc, **tile,
            )  # fmt: skip
    return grad_logits

"""Pseudo-labels and the segmentation loss against them in Triton (arXiv 2112.01882, Eq. 5 to 7).

With m the softmax of the localizer's scores times the image-level labels, h = 1 where it is largest, omega the sigmoid
of the old model's logits::

    q = alpha h + (1 - alpha) m        target: min(omega_0, q_0), omega_c for old c, q_c for new c

One pass over the inputs gives the targets, the loss and its derivative; an image's weight is known once all of its
tiles have said which new classes they found.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, class_block, linear, numbers, on_device_of, strides
from ._tiles import exp_scores, gates, load_tile, peak_of, sigmoid, soft_margin, store_tile

# Elements of each map that a program holds at a time: 16 per thread of 4 warps. Three maps and the exponentials of one
# are held at once. (4096 elements with 8 warps need as many registers per thread, and spill on sm_80 in bfloat16.)
TILE = 2048
# Up to this many classes are held at once and read once; above, they go by in blocks and the localizer's are read
# three times: for the sum of exponentials, for the largest gated one, for the targets.
MAX_HELD_CLASSES = 128
BLOCK_CLASSES = 64
# Elements of the gradient that a program scales at a time: 16 per thread of 4 warps.
SCALED_TILE = 2048
SCALED_CLASSES = 16
IMAGE_WEIGHT_EPS = tl.constexpr(1e-5)  # keeps the weighted mean over images finite when no image counts
BLOCK_IMAGES = tl.constexpr(128)


@triton.jit
def _targets(
    gated,  # exponentials times labels (classes, pixels)
    best,  # the largest of them (pixels)
    weight,  # 1 / sum of the exponentials (pixels)
    omega,
    c,
    old,
    ALPHA: tl.constexpr,
    MINIMUM: tl.constexpr,
    BACKGROUND: tl.constexpr,
):
    hard = (gated == best[None, :]).to(gated.dtype)
    q = ALPHA * hard + (1.0 - ALPHA) * (gated * weight[None, :])
    background = tl.minimum(omega, q) if MINIMUM else (1.0 - BACKGROUND) * omega + BACKGROUND * q
    return tl.where((c == 0)[:, None], background, tl.where((c < old)[:, None], omega, q))


@triton.jit
def _pseudo_label_fwd_kernel(
    logits,  # (B, C, H, W), any strides, as scores and out; not read if not LOSS
    scores,  # (B, C, H, W)
    old_logits,  # (B, old, H, W), any strides
    image_labels,  # (B, C-1), any strides
    sums,  # (B, tiles): the loss of a tile, if LOSS
    found,  # (B, tiles, C): whether a new class has a target above 0 in a tile
    out,  # (B, C, H, W): the derivative of the loss if DERIVATIVE, the targets if not LOSS
    C,
    old,
    P,
    tiles,
    width,
    labels_batch,
    labels_class,
    logits_batch,
    logits_class,
    logits_row,
    logits_pixel,
    scores_batch,
    scores_class,
    scores_row,
    scores_pixel,
    old_batch,
    old_class,
    old_row,
    old_pixel,
    out_batch,
    out_class,
    out_row,
    out_pixel,
    ALPHA: tl.constexpr,
    MINIMUM: tl.constexpr,
    BACKGROUND: tl.constexpr,
    LOSS: tl.constexpr,
    DERIVATIVE: tl.constexpr,
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
    peak = tl.full((BLOCK_P,), -float("inf"), ACC)
    norm = tl.zeros((BLOCK_P,), ACC)
    best = tl.zeros((BLOCK_P,), ACC)  # of the gated exponentials, which are not negative
    if HELD:
        z = load_tile(
            scores, b, first, C, p, P, width, scores_batch, scores_class, scores_row, scores_pixel, LINEAR, ACC
        )  # fmt: skip
        gated = exp_scores(z, peak_of(z, first, C), first, C)
        norm += tl.sum(gated, axis=0)
        gated *= gates(image_labels, b, first, C, labels_batch, labels_class, ACC)[:, None]
        best = tl.max(gated, axis=0)
    else:
        for block in range(0, C, BLOCK_C):
            c = block + first
            z = load_tile(
                scores, b, c, C, p, P, width, scores_batch, scores_class, scores_row, scores_pixel, LINEAR, ACC
            )  # fmt: skip
            new_peak = tl.maximum(peak, peak_of(z, c, C))
            norm = norm * tl.exp(peak - new_peak) + tl.sum(exp_scores(z, new_peak, c, C), axis=0)
            peak = new_peak
        for block in range(0, C, BLOCK_C):
            c = block + first
            z = load_tile(
                scores, b, c, C, p, P, width, scores_batch, scores_class, scores_row, scores_pixel, LINEAR, ACC
            )  # fmt: skip
            gate = gates(image_labels, b, c, C, labels_batch, labels_class, ACC)
            best = tl.maximum(best, tl.max(exp_scores(z, peak, c, C) * gate[:, None], axis=0))
    weight = 1.0 / norm
    loss = tl.zeros((BLOCK_P,), ACC)
    for block in range(0, C, BLOCK_C):  # once if HELD
        c = block + first
        if not HELD:
            z = load_tile(
                scores, b, c, C, p, P, width, scores_batch, scores_class, scores_row, scores_pixel, LINEAR, ACC
            )  # fmt: skip
            gate = gates(image_labels, b, c, C, labels_batch, labels_class, ACC)
            gated = exp_scores(z, peak, c, C) * gate[:, None]
        o = load_tile(old_logits, b, c, old, p, P, width, old_batch, old_class, old_row, old_pixel, LINEAR, ACC)
        q = _targets(gated, best, weight, sigmoid(o), c, old, ALPHA, MINIMUM, BACKGROUND)
        inside = (c < C)[:, None] & (p < P)[None, :]
        new = tl.max((inside & (q > 0)).to(tl.int32), axis=1)
        row = found + program.to(tl.int64) * C + c
        tl.store(row, new.to(tl.int8), mask=c < C)
        if LOSS:
            s = load_tile(
                logits, b, c, C, p, P, width, logits_batch, logits_class, logits_row, logits_pixel, LINEAR, ACC
            )  # fmt: skip
            loss += tl.sum(tl.where(inside, soft_margin(s, q), 0.0), axis=0)
            if DERIVATIVE:
                q = sigmoid(s) - q
        if DERIVATIVE or not LOSS:
            store_tile(out, q, b, c, C, p, P, width, out_batch, out_class, out_row, out_pixel, LINEAR)
    if LOSS:
        tl.store(sums + program, tl.sum(loss, axis=0))


@triton.jit
def _image_weight_kernel(
    found,  # (B, tiles, C)
    image_labels,  # (B, C-1), any strides
    sums,  # (B, tiles), if LOSS
    image_weight,  # (B,): 1 if the new classes found are the labelled ones, else 0
    image_loss,  # (B,), if LOSS
    C,
    old,
    tiles,
    labels_batch,
    labels_class,
    LOSS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    ACC: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    wrong = tl.zeros((BLOCK_C,), tl.int32)
    for block in range(old, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        anywhere = tl.zeros((BLOCK_T, BLOCK_C), tl.int8)
        for start in range(0, tiles, BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            row = found + ((b * tiles + t) * C)[:, None] + c[None, :]
            anywhere |= tl.load(row, mask=(t < tiles)[:, None] & (c < C)[None, :], other=0)
        labelled = gates(image_labels, b, c, C, labels_batch, labels_class, ACC) > 0
        there = tl.max(anywhere.to(tl.int32), axis=0) > 0
        wrong |= ((there != labelled) & (c < C)).to(tl.int32)
    tl.store(image_weight + b, 1.0 - tl.max(wrong, axis=0).to(ACC))
    if LOSS:
        loss = tl.zeros((BLOCK_T,), ACC)
        for start in range(0, tiles, BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            loss += tl.load(sums + b * tiles + t, mask=t < tiles, other=0.0)
        tl.store(image_loss + b, tl.sum(loss, axis=0))


@triton.jit
def _pseudo_label_finish_kernel(
    image_weight,  # (B,), as image_loss and factor
    image_loss,
    factor,  # g_b / (sum g + 1e-5) / P
    loss,
    images,
    P,
    ACC: tl.constexpr,
):
    g = tl.zeros((BLOCK_IMAGES,), ACC)
    for start in range(0, images, BLOCK_IMAGES):
        i = start + tl.arange(0, BLOCK_IMAGES)
        g += tl.load(image_weight + i, mask=i < images, other=0.0)
    norm = (tl.sum(g, axis=0) + IMAGE_WEIGHT_EPS) * P
    total = tl.zeros((BLOCK_IMAGES,), ACC)
    for start in range(0, images, BLOCK_IMAGES):
        i = start + tl.arange(0, BLOCK_IMAGES)
        of_image = tl.load(image_weight + i, mask=i < images, other=0.0) / norm
        tl.store(factor + i, of_image, mask=i < images)
        total += of_image * tl.load(image_loss + i, mask=i < images, other=0.0)
    tl.store(loss, tl.sum(total, axis=0))


@triton.jit
def _pseudo_label_bwd_kernel(
    grad,  # of the loss, a scalar
    factor,  # (B,)
    derivative,  # (B, C, H, W), any strides, as grad_logits
    grad_logits,
    C,
    P,
    tiles,
    width,
    factor_stride,
    from_batch,
    from_class,
    from_row,
    from_pixel,
    to_batch,
    to_class,
    to_row,
    to_pixel,
    LINEAR: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    b = (program // tiles).to(tl.int64)
    p = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    scale = tl.load(grad).to(ACC) * tl.load(factor + b * factor_stride).to(ACC)
    for block in range(0, C, BLOCK_C):
        c = block + tl.arange(0, BLOCK_C)
        d = load_tile(derivative, b, c, C, p, P, width, from_batch, from_class, from_row, from_pixel, LINEAR, ACC)
        store_tile(grad_logits, d * scale, b, c, C, p, P, width, to_batch, to_class, to_row, to_pixel, LINEAR)


def _tile(classes: int, pixels: int) -> tuple[dict[str, int | bool], int]:
    """How many classes and pixels a program holds at a time; and the tiles of an image."""
    held = classes <= MAX_HELD_CLASSES
    block_c = class_block(classes, MAX_HELD_CLASSES if held else BLOCK_CLASSES)
    block_p = min(TILE // block_c, max(32, triton.next_power_of_2(pixels)))
    tile = {"HELD": held, "BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": 4}
    return tile, triton.cdiv(pixels, block_p)


def _run(
    logits: Tensor | None,
    scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    out: Tensor | None,
    acc: tl.dtype,
    image_weight: Tensor,
    alpha: float,
    background_weight: float | None,
) -> Tensor:
    """Fills `out`, if any, and `image_weight`; returns the loss of each image (B,), where there are logits."""
    batch, classes, height, width = scores.shape
    tile, tiles = _tile(classes, height * width)
    labels = numbers(image_labels)
    loss = logits is not None
    logits = scores if logits is None else logits
    sums, image_loss = image_weight.new_empty((batch, tiles)), torch.empty_like(image_weight)
    found = torch.empty((batch, tiles, classes), dtype=torch.int8, device=scores.device)
    maps = [m for m in (logits, scores, old_logits, out) if m is not None]
    with on_device_of(scores):
        _pseudo_label_fwd_kernel[(batch * tiles,)](
            logits, scores, old_logits, labels, sums, found, sums if out is None else out,
            classes, old_logits.shape[1], height * width, tiles, width, *labels.stride(),
            *strides(logits), *strides(scores), *strides(old_logits), *strides(scores if out is None else out),
            ALPHA=alpha, MINIMUM=background_weight is None, BACKGROUND=background_weight or 0.0,
            LOSS=loss, DERIVATIVE=loss and out is not None, LINEAR=linear(*maps), ACC=acc, **tile,
        )  # fmt: skip
        _image_weight_kernel[(batch,)](
            found, labels, sums, image_weight, image_loss, classes, old_logits.shape[1], tiles, *labels.stride(),
            LOSS=loss, BLOCK_C=32, BLOCK_T=64, ACC=acc, num_warps=4,
        )  # fmt: skip
    return image_loss


def merge_pseudo_labels(
    localizer_scores: Tensor, old_logits: Tensor, image_labels: Tensor, alpha: float, background_weight: float | None
) -> tuple[Tensor, Tensor]:
    """Targets (B, C, H, W) and image weights (B,) in the accumulation dtype."""
    dtype, acc = accumulator(localizer_scores, old_logits, image_labels)
    targets = localizer_scores.new_empty(localizer_scores.shape, dtype=dtype)
    weight = localizer_scores.new_empty(localizer_scores.shape[0], dtype=dtype)
    if len(weight):
        _run(None, localizer_scores, old_logits, image_labels, targets, acc, weight, alpha, background_weight)
    return targets, weight


def pseudo_label_loss(
    logits: Tensor,
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    alpha: float,
    background_weight: float | None,
    with_derivative: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; g_b / (sum g + 1e-5) / P of each image (B,); and sigmoid(s) - q^ as the logits are, if asked."""
    batch, _, height, width = logits.shape
    dtype, acc = accumulator(logits, localizer_scores, old_logits, image_labels)
    derivative = torch.empty_like(logits) if with_derivative else None
    empty = logits.new_empty(0, dtype=dtype)
    weight, factor = (logits.new_empty(batch, dtype=dtype) for _ in range(2))
    if batch:
        loss = logits.new_empty((), dtype=dtype)
        image_loss = _run(
            logits, localizer_scores, old_logits, image_labels, derivative, acc, weight, alpha, background_weight
        )
        with on_device_of(logits):
            _pseudo_label_finish_kernel[(1,)](
                weight, image_loss, factor, loss, batch, height * width, ACC=acc, num_warps=4
            )
    else:
        loss = logits.new_zeros((), dtype=dtype)
    return loss, factor, empty if derivative is None else derivative


def pseudo_label_loss_backward(grad: Tensor, factor: Tensor, derivative: Tensor) -> Tensor:
    """grad_logits, laid out as `torch.empty_like(derivative)`."""
    batch, classes, height, width = derivative.shape
    grad_logits = torch.empty_like(derivative)
    if batch == 0:
        return grad_logits
    _, acc = accumulator(grad, factor, derivative)
    block_c = class_block(classes, SCALED_CLASSES)
    block_p = min(SCALED_TILE // block_c, max(32, triton.next_power_of_2(height * width)))
    tiles = triton.cdiv(height * width, block_p)
    with on_device_of(derivative):
        _pseudo_label_bwd_kernel[(batch * tiles,)](
            grad, factor, derivative, grad_logits, classes, height * width, tiles, width, factor.stride(0),
            *strides(derivative), *strides(grad_logits), LINEAR=linear(derivative, grad_logits),
            BLOCK_C=block_c, BLOCK_P=block_p, ACC=acc, num_warps=4,
        )  # fmt: skip
    return grad_logits

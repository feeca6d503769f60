"""Pseudo-labels and the segmentation loss against them in Triton (arXiv 2112.01882, Eq. 5 to 7).

With m the softmax of the localizer's scores times the image-level labels, h = 1 where it is largest, omega the sigmoid
of the old model's logits::

    q = alpha h + (1 - alpha) m        target: min(omega_0, q_0), omega_c for old c, q_c for new c

Old classes may yield: omega is multiplied by 1 less the sum of m over the new classes. And m may be mixed with a prior
of the new classes, after that sum and before h.

One pass over the inputs gives the targets, the loss and its derivative. An image's weight is known once all of its
tiles have said which new classes they found.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import accumulator, linear, map_of, matrix_of, on_device_of, tile_for
from ._math import (
    IMAGE_WEIGHT_EPS,
    highest_of,
    left_to_old,
    merged_targets,
    mixed_with_prior,
    pseudo_label,
    sigmoid,
    soft_margin,
)
from ._tiles import (
    BLOCK_IMAGES,
    exp_scores,
    load_gates,
    load_tile,
    peak_of,
    softmax_of,
    store_tile,
    sum_of_weights,
)

# A thread holds 16 elements of each map: three maps and the exponentials of one at once. 8 warps instead of 4 need as
# many registers per thread, and spill on sm_80 in bfloat16.
# Up to this many classes are held at once, and all maps read once. More go by in blocks, and the localizer's scores are
# read three times: for the sum of exponentials, for the largest gated one, for the targets. A prior is read three times
# then: for its highest, for the largest of what is mixed, for the targets.
MAX_HELD_CLASSES = 128
BLOCK_CLASSES = 64
# Classes of the gradient that a program scales at a time.
SCALED_CLASSES = 16
# Classes and tiles that a program looks through at a time for the weight of an image.
WEIGHT_CLASSES = 32
WEIGHT_TILES = 64


@triton.jit
def load_prior(prior, b, c, gate, C, old, p, P, width, LINEAR: tl.constexpr, ACC: tl.constexpr):
    """A tile of the prior times the image-level labels; 0, and not read, for old classes and where a label is 0."""
    new = tl.where((c >= old) & (gate != 0), c - old, C - old)
    return load_tile(prior, b, new, C - old, p, P, width, LINEAR, ACC) * gate[:, None]


@triton.jit
def _pseudo_label_loss_fwd_kernel(
    logits,  # (B, C, H, W), any strides, as scores and out; or None
    scores,  # (B, C, H, W)
    old_logits,  # (B, old, H, W), any strides
    prior,  # (B, C - old, H, W), any strides; or None
    image_labels,  # (B, C-1), any strides
    sums,  # (B, tiles): the loss of a tile, if there are logits
    found,  # (B, tiles, C): whether a new class has a target above 0 in a tile
    out,  # (B, C, H, W): the derivative of the loss if there are logits, else the targets; or None
    C,
    old,
    P,
    tiles,
    width,
    ALPHA: tl.constexpr,
    BACKGROUND_WEIGHT: tl.constexpr,
    OLD_YIELDS: tl.constexpr,
    PRIOR_WEIGHT: tl.constexpr,
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
    if HELD:
        z = load_tile(scores, b, first, C, p, P, width, LINEAR, ACC)
        gated = exp_scores(z, peak_of(z, first, C), first, C)
        norm = tl.sum(gated, axis=0)
        gate = load_gates(image_labels, b, first, C, ACC)
        gated *= gate[:, None]
        best = tl.max(gated, axis=0)
        if OLD_YIELDS:
            new = tl.sum(tl.where((first >= old)[:, None], gated, 0.0), axis=0)
    else:
        peak, norm = softmax_of(scores, b, C, p, P, width, LINEAR, BLOCK_C, BLOCK_P, ACC)
        best = tl.zeros((BLOCK_P,), ACC)  # of the gated exponentials, which are not negative
        if OLD_YIELDS:
            new = tl.zeros((BLOCK_P,), ACC)
        for block in range(0, C, BLOCK_C):
            c = block + first
            z = load_tile(scores, b, c, C, p, P, width, LINEAR, ACC)
            gate = load_gates(image_labels, b, c, C, ACC)
            gated = exp_scores(z, peak, c, C) * gate[:, None]
            best = tl.maximum(best, tl.max(gated, axis=0))
            if OLD_YIELDS:
                new += tl.sum(tl.where((c >= old)[:, None], gated, 0.0), axis=0)
    weight = 1.0 / norm
    if OLD_YIELDS:
        left = left_to_old(new * weight)
    if prior is not None:  # from here on `gated` is m mixed with it, and `best` the largest of that
        if HELD:
            of_prior = load_prior(prior, b, first, gate, C, old, p, P, width, LINEAR, ACC)
            highest = tl.reduce(of_prior, 0, highest_of)
            gated = mixed_with_prior(gated * weight[None, :], of_prior, highest, first, old, PRIOR_WEIGHT)
            best = tl.reduce(gated, 0, highest_of)
        else:
            highest = tl.zeros((BLOCK_P,), ACC)
            for block in range(0, C, BLOCK_C):
                c = block + first
                gate = load_gates(image_labels, b, c, C, ACC)
                of_prior = load_prior(prior, b, c, gate, C, old, p, P, width, LINEAR, ACC)
                highest = highest_of(highest, tl.reduce(of_prior, 0, highest_of))
            best = tl.zeros((BLOCK_P,), ACC)
            for block in range(0, C, BLOCK_C):
                c = block + first
                z = load_tile(scores, b, c, C, p, P, width, LINEAR, ACC)
                gate = load_gates(image_labels, b, c, C, ACC)
                gated = exp_scores(z, peak, c, C) * gate[:, None]
                of_prior = load_prior(prior, b, c, gate, C, old, p, P, width, LINEAR, ACC)
                gated = mixed_with_prior(gated * weight[None, :], of_prior, highest, c, old, PRIOR_WEIGHT)
                best = highest_of(best, tl.reduce(gated, 0, highest_of))
    loss = tl.zeros((BLOCK_P,), ACC)
    for block in range(0, C, BLOCK_C):  # once if HELD
        c = block + first
        if not HELD:
            z = load_tile(scores, b, c, C, p, P, width, LINEAR, ACC)
            gated = exp_scores(z, peak, c, C)
            gate = load_gates(image_labels, b, c, C, ACC)
            gated *= gate[:, None]
        omega = sigmoid(load_tile(old_logits, b, c, old, p, P, width, LINEAR, ACC))
        if OLD_YIELDS:
            omega *= left[None, :]
        if prior is None:
            q = pseudo_label(gated * weight[None, :], gated == best[None, :], ALPHA)
        else:
            if not HELD:
                of_prior = load_prior(prior, b, c, gate, C, old, p, P, width, LINEAR, ACC)
                gated = mixed_with_prior(gated * weight[None, :], of_prior, highest, c, old, PRIOR_WEIGHT)
            q = pseudo_label(gated, gated == best[None, :], ALPHA)
        q = merged_targets(omega, q, c, old, BACKGROUND_WEIGHT)
        inside = (c < C)[:, None] & (p < P)[None, :]
        there = tl.max((inside & (q > 0)).to(tl.int32), axis=1)
        row = found + program.to(tl.int64) * C + c
        tl.store(row, there.to(tl.int8), mask=c < C)
        if logits is not None:
            s = load_tile(logits, b, c, C, p, P, width, LINEAR, ACC)
            loss += tl.sum(tl.where(inside, soft_margin(s, q), 0.0), axis=0)
            if out is not None:
                store_tile(out, sigmoid(s) - q, b, c, C, p, P, width, LINEAR)
        else:
            store_tile(out, q, b, c, C, p, P, width, LINEAR)
    if logits is not None:
        tl.store(sums + program, tl.sum(loss, axis=0))


@triton.jit
def _merge_pseudo_labels_finish_kernel(
    found,  # (B, tiles, C)
    image_labels,  # (B, C-1), any strides
    sums,  # (B, tiles) or None
    image_weight,  # (B,): 1 if the new classes found are the labelled ones, else 0
    image_loss,  # (B,), if there are sums
    C,
    old,
    tiles,
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
        labelled = load_gates(image_labels, b, c, C, ACC) > 0
        there = tl.max(anywhere.to(tl.int32), axis=0) > 0
        wrong |= ((there != labelled) & (c < C)).to(tl.int32)
    tl.store(image_weight + b, 1.0 - tl.max(wrong, axis=0).to(ACC))
    if sums is not None:
        loss = tl.zeros((BLOCK_T,), ACC)
        for start in range(0, tiles, BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            loss += tl.load(sums + b * tiles + t, mask=t < tiles, other=0.0)
        tl.store(image_loss + b, tl.sum(loss, axis=0))


@triton.jit(do_not_specialize=["images"])
def _pseudo_label_loss_finish_kernel(
    image_weight,  # (B,), as image_loss and factor
    image_loss,
    factor,  # g_b / (sum g + 1e-5) / P
    loss,
    images,
    P,
    ACC: tl.constexpr,
):
    norm = (sum_of_weights(image_weight, images, 1, ACC) + IMAGE_WEIGHT_EPS) * P
    total = tl.zeros((BLOCK_IMAGES,), ACC)
    for start in range(0, images, BLOCK_IMAGES):
        i = start + tl.arange(0, BLOCK_IMAGES)
        of_image = tl.load(image_weight + i, mask=i < images, other=0.0) / norm
        tl.store(factor + i, of_image, mask=i < images)
        total += of_image * tl.load(image_loss + i, mask=i < images, other=0.0)
    tl.store(loss, tl.sum(total, axis=0))


@triton.jit
def _pseudo_label_loss_bwd_kernel(
    grad,  # of the loss, a scalar
    factor,  # (B,)
    derivative,  # (B, C, H, W), any strides, as grad_logits
    grad_logits,
    C,
    P,
    tiles,
    width,
    factor_stride,
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
        d = load_tile(derivative, b, c, C, p, P, width, LINEAR, ACC)
        store_tile(grad_logits, d * scale, b, c, C, p, P, width, LINEAR)


def _run(
    logits: Tensor | None,
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    out: Tensor | None,
    image_weight: Tensor,
    acc: tl.dtype,
    alpha: float,
    background_weight: float | None,
    old_yields: bool,
    prior: Tensor | None,
    prior_weight: float,
) -> Tensor | None:
    """Fills `out`, if any, and `image_weight`; returns the loss of each image (B,), if there are logits."""
    batch, classes, height, width = localizer_scores.shape
    old, pixels = old_logits.shape[1], height * width
    tile = tile_for(classes, pixels, most=BLOCK_CLASSES, held=MAX_HELD_CLASSES)
    tiles = triton.cdiv(pixels, tile["BLOCK_P"])
    found = torch.empty((batch, tiles, classes), dtype=torch.int8, device=localizer_scores.device)
    sums = None if logits is None else image_weight.new_empty((batch, tiles))
    image_loss = None if logits is None else torch.empty_like(image_weight)
    if prior_weight == 0:
        prior = None
    z, o = map_of(localizer_scores), map_of(old_logits)
    s, to, mixed = (None if m is None else map_of(m) for m in (logits, out, prior))
    maps = [m for m in (s, z, o, to, mixed) if m is not None]
    labels = matrix_of(image_labels)
    with on_device_of(localizer_scores):
        _pseudo_label_loss_fwd_kernel[(batch * tiles,)](
            s, z, o, mixed, labels, sums, found, to, classes, old, pixels, tiles, width,
            ALPHA=alpha, BACKGROUND_WEIGHT=background_weight, OLD_YIELDS=old_yields,
            PRIOR_WEIGHT=None if prior is None else prior_weight,
            LINEAR=linear(*maps), HELD=classes <= MAX_HELD_CLASSES, ACC=acc, **tile,
        )  # fmt: skip
        _merge_pseudo_labels_finish_kernel[(batch,)](
            found, labels, sums, image_weight, image_loss, classes, old, tiles,
            BLOCK_C=WEIGHT_CLASSES, BLOCK_T=WEIGHT_TILES, ACC=acc, num_warps=4,
        )  # fmt: skip
    return image_loss


def merge_pseudo_labels(
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    alpha: float,
    background_weight: float | None,
    old_yields: bool,
    prior: Tensor | None,
    prior_weight: float,
) -> tuple[Tensor, Tensor]:
    """Targets (B, C, H, W) and image weights (B,) in the accumulation dtype."""
    dtype, acc = accumulator(localizer_scores, old_logits, image_labels, prior)
    targets = localizer_scores.new_empty(localizer_scores.shape, dtype=dtype)
    weight = localizer_scores.new_empty(localizer_scores.shape[0], dtype=dtype)
    if len(weight):
        _run(
            None, localizer_scores, old_logits, image_labels, targets, weight, acc,
            alpha, background_weight, old_yields, prior, prior_weight,
        )  # fmt: skip
    return targets, weight


def pseudo_label_loss(
    logits: Tensor,
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    alpha: float,
    background_weight: float | None,
    old_yields: bool,
    prior: Tensor | None,
    prior_weight: float,
    with_derivative: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss; g_b / (sum g + 1e-5) / P of each image (B,); and sigmoid(s) - q^ as the logits are, if asked."""
    batch, _, height, width = logits.shape
    dtype, acc = accumulator(logits, localizer_scores, old_logits, image_labels, prior)
    derivative = torch.empty_like(logits) if with_derivative else None
    empty = logits.new_empty(0, dtype=dtype)
    weight, factor = (logits.new_empty(batch, dtype=dtype) for _ in range(2))
    loss = logits.new_zeros((), dtype=dtype) if batch == 0 else logits.new_empty((), dtype=dtype)
    if batch:
        image_loss = _run(
            logits, localizer_scores, old_logits, image_labels, derivative, weight, acc,
            alpha, background_weight, old_yields, prior, prior_weight,
        )  # fmt: skip
        with on_device_of(logits):
            _pseudo_label_loss_finish_kernel[(1,)](
                weight, image_loss, factor, loss, batch, height * width, ACC=acc, num_warps=4
            )
    return loss, factor, empty if derivative is None else derivative


def pseudo_label_loss_backward(grad: Tensor, factor: Tensor, derivative: Tensor) -> Tensor:
    """grad_logits, laid out as `torch.empty_like(derivative)`."""
    batch, classes, height, width = derivative.shape
    pixels = height * width
    grad_logits = torch.empty_like(derivative)
    if batch == 0:
        return grad_logits
    _, acc = accumulator(grad, factor, derivative)
    tile = tile_for(classes, pixels, most=SCALED_CLASSES)
    tiles = triton.cdiv(pixels, tile["BLOCK_P"])
    d, grad_s = map_of(derivative), map_of(grad_logits)
    with on_device_of(derivative):
        _pseudo_label_loss_bwd_kernel[(batch * tiles,)](
            grad, factor, d, grad_s, classes, pixels, tiles, width, factor.stride(0),
            LINEAR=linear(d, grad_s), ACC=acc, **tile,
        )  # fmt: skip
    return grad_logits

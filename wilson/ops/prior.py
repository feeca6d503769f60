"""Binary cross-entropy of new classes' scores against what is known of them from outside: maps, or their names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _checks, _library, _registry, reference
from ._autograd import first_order, under_transform

__all__ = ["prior_loss"]

PRIOR = "prior_loss"


@_registry.raw("prior_loss")
def _forward(
    scores: Tensor, image_labels: Tensor, maps: Tensor | None, similarity: Tensor | None, old_logits: Tensor | None
) -> Tensor:
    _library.note_reference(PRIOR, scores)
    return reference.prior_loss(scores, image_labels, maps=maps, similarity=similarity, old_logits=old_logits)


@torch.library.register_fake(_forward)
def _(
    scores: Tensor, image_labels: Tensor, maps: Tensor | None, similarity: Tensor | None, old_logits: Tensor | None
) -> Tensor:
    return scores.new_empty((), dtype=reference.accumulate(scores, image_labels, maps, similarity, old_logits))


@_registry.raw("prior_loss_backward")
def _backward(
    grad: Tensor,
    scores: Tensor,
    image_labels: Tensor,
    maps: Tensor | None,
    similarity: Tensor | None,
    old_logits: Tensor | None,
) -> Tensor:
    """y_n (sigmoid(z_n) - t_n) / (B N P) for the new classes, 0 for the others."""
    _library.note_reference(PRIOR, scores)
    targets = reference.prior_targets(maps, similarity, old_logits, grad.dtype)
    new = targets.shape[1]
    y = image_labels[:, -new:].to(grad.dtype)[:, :, None, None]
    derivative = torch.where(y != 0, y * (scores[:, -new:].to(grad.dtype).sigmoid() - targets), 0)
    grad_scores = torch.zeros_like(scores)
    grad_scores[:, -new:] = derivative * (grad / max(targets.numel(), 1))
    return grad_scores


@torch.library.register_fake(_backward)
def _(grad: Tensor, scores: Tensor, *others: object) -> Tensor:
    return torch.empty_like(scores)


class _PriorLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        image_labels: Tensor,
        maps: Tensor | None,
        similarity: Tensor | None,
        old_logits: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(scores, image_labels, maps, similarity, old_logits)
        return _forward(scores, image_labels, maps, similarity, old_logits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, *constants = ctx.saved_tensors
        grad_scores = _backward(grad.detach(), scores.detach(), *constants)
        return first_order(PRIOR, grad_scores, scores), None, None, None, None


@_registry.op("new classes' scores against maps or names from outside", gradient_to="scores")
def prior_loss(
    scores: Tensor,
    image_labels: Tensor,
    *,
    maps: Tensor | None = None,
    similarity: Tensor | None = None,
    old_logits: Tensor | None = None,
) -> Tensor:
    """Pull the scores of the new classes that an image shows towards a prior from outside.

    Binary cross-entropy with logits between the scores z of the N new classes and targets t, gated by the image-level
    labels y; images without a class count in the mean::

        loss = 1 / (B N P) sum_b sum_n y_n sum_i BCE(z_n,i, t_n,i)

    The targets come from one of two sources. `maps` are the targets themselves: class maps of a frozen classifier, an
    image-text model, files. `similarity` A is between the names of all classes: with k_i the class that the old model
    sees at pixel i, the first of equals, t_n,i = sigmoid(A[n, k_i] / A[n, 0]). RaSP (Roy et al., CoLLAs 2023),
    the loss of its semantic prior, as in the published code.

    Args:
        scores: scores z `(B, C, H, W)`, the new classes last; float64, float32, bfloat16 or float16, any strides.
        image_labels: `(B, L)`, L >= N, whose last N columns are the new classes; bool, integer or floating, 0 or 1.
            Where the label is 0, scores and targets may hold anything.
        maps: targets `(B, N, H, W)` in 0..1, floating, 1 <= N <= C. Taken as constant.
        similarity: `(C, C)`, background first, floating; that of a new class and the background is not 0.
            Taken as constant.
        old_logits: logits of the old model `(B, O, H, W)`, floating, 1 <= O < C; N = C - O. With `similarity` alone.
            Taken as constant.

    Returns:
        The loss, a scalar; float64 if an input is, else float32. 0 for an empty batch.

    Raises:
        TypeError: an argument is not floating.
        ValueError: both sources are given, or none; shapes do not match; or a dimension but the batch is empty.

    Differentiable once with respect to `scores`.
    """
    _checks.scores(PRIOR, "scores", scores)
    new = _check_source(scores, maps, similarity, old_logits)
    _check_labels(image_labels, len(scores), new)
    _checks.same_device(
        PRIOR, scores=scores, image_labels=image_labels, maps=maps, similarity=similarity, old_logits=old_logits
    )
    if under_transform():
        return reference.prior_loss(scores, image_labels, maps=maps, similarity=similarity, old_logits=old_logits)
    constants = [t if t is None else t.detach() for t in (image_labels, maps, similarity, old_logits)]
    if torch.is_grad_enabled() and scores.requires_grad:
        return _PriorLoss.apply(scores, *constants)
    return _forward(scores.detach(), *constants)


def _check_source(scores: Tensor, maps: Tensor | None, similarity: Tensor | None, old_logits: Tensor | None) -> int:
    """Exactly one source, and a good one; returns the number of new classes."""
    classes = scores.shape[1]
    if (maps is None) == (similarity is None) or (similarity is None) != (old_logits is None):
        given = [
            name
            for name, value in (("maps", maps), ("similarity", similarity), ("old_logits", old_logits))
            if value is not None
        ]
        raise ValueError(
            f"{PRIOR}: pass either maps, or similarity with old_logits, got {' and '.join(given) or 'none of them'}"
        )
    if maps is not None:
        _checks.scores(PRIOR, "maps", maps, layout="(B, N, H, W)")
        if maps.shape[0] != scores.shape[0] or maps.shape[2:] != scores.shape[2:]:
            raise ValueError(
                f"{PRIOR}: maps must have the batch, height and width of scores {tuple(scores.shape)}, got "
                f"{tuple(maps.shape)}; resize them with torch.nn.functional.interpolate"
            )
        if maps.shape[1] > classes:
            raise ValueError(f"{PRIOR}: maps has {maps.shape[1]} classes, more than the {classes} of scores")
        return maps.shape[1]
    assert similarity is not None and old_logits is not None
    _checks.scores(PRIOR, "similarity", similarity, rank=2, layout="(C, C)")
    if similarity.shape != (classes, classes):
        raise ValueError(
            f"{PRIOR}: similarity must be (C, C) = {(classes, classes)}, background first, got "
            f"{tuple(similarity.shape)}"
        )
    _checks.old_logits(PRIOR, old_logits, "scores", scores)
    if old_logits.shape[1] == classes:
        raise ValueError(f"{PRIOR}: old_logits has all {classes} classes of scores, so that none is new")
    return classes - old_logits.shape[1]


def _check_labels(value: Tensor, batch: int, new: int) -> None:
    """(B, L), L >= N."""
    _checks.tensor(PRIOR, "image_labels", value)
    if value.is_complex():
        raise TypeError(f"{PRIOR}: image_labels must be bool, integer or floating, got {value.dtype}")
    if value.dim() != 2 or value.shape[0] != batch or value.shape[1] < new:
        raise ValueError(
            f"{PRIOR}: image_labels must be (B, L) with B = {batch} and a column for each of the {new} new classes "
            f"or more, got {tuple(value.shape)}"
        )

"""Decode heads of mmsegmentation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from .handle import Method, Patch, find
from .served import reason_against

NAME = "mmseg"


def mmseg() -> Patch:
    """Let the decode heads of mmsegmentation take their losses from logits at feature resolution.

    `BaseDecodeHead.loss_by_feat`, which most heads inherit, resizes the logits to the masks' size, for its losses and
    for the accuracy. With the patch `CrossEntropyLoss` is :func:`wilson.ops.upsampled_cross_entropy`, and with
    `use_sigmoid` :func:`wilson.ops.upsampled_soft_margin_loss`, in mmsegmentation's mean (`avg_non_ignore`), and the
    accuracy comes from :func:`wilson.ops.upsampled_argmax`. A label that is no class is skipped, where PyTorch raises
    an error.

    Other losses, class weights, pixel samplers, another reduction and heads of one output go the library's own way.

    Returns:
        The handle, which undoes it.

    Raises:
        ImportError: mmsegmentation, or what it needs, is not installed.
        RuntimeError: its version has another decode head.
    """
    owner = find(
        NAME, "mmsegmentation", "mmseg.models.decode_heads.decode_head", "BaseDecodeHead",
        "loss_by_feat", ("self", "seg_logits", "batch_data_samples"),
    )  # fmt: skip
    return Patch(NAME, owner, "loss_by_feat", _loss_by_feat)


def _loss_by_feat(original: Method, patch: Patch) -> Method:
    from mmseg.models.losses import CrossEntropyLoss

    def loss_by_feat(self: Any, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        several = isinstance(self.loss_decode, torch.nn.ModuleList)
        losses: list[Any] = list(self.loss_decode) if several else [self.loss_decode]
        label = self._stack_batch_gt(batch_data_samples).squeeze(1)
        reason = _reason_against(self, losses, CrossEntropyLoss, seg_logits)
        reason = reason or reason_against(seg_logits.shape[0], seg_logits.shape[1], label, self.ignore_index)
        if reason:
            patch.falls_back(reason)
            return original(self, seg_logits, batch_data_samples)
        counted = ((label >= 0) & (label != self.ignore_index)).sum()
        found: dict[str, Tensor] = {}
        for loss in losses:
            value = _loss(loss, seg_logits, label, self, counted)
            found[loss.loss_name] = found[loss.loss_name] + value if loss.loss_name in found else value
        found["acc_seg"] = _accuracy(seg_logits, label, self)
        return found

    return loss_by_feat


def _reason_against(head: Any, losses: list[Any], cross_entropy: Any, logits: Tensor) -> str:
    """Why the head's losses are not served, whatever the labels are."""
    for loss in losses:
        if type(loss) is not cross_entropy or loss.use_mask:
            return f"{type(loss).__name__} is no cross-entropy of pixels"
        if loss.class_weight is not None:
            return "the loss has class weights"
        if loss.reduction != "mean":
            return f"the loss has the reduction {loss.reduction!r}"
    if head.sampler is not None:
        return f"{type(head.sampler).__name__} weighs the pixels"
    return "the head has one output" if logits.shape[1] == 1 else ""


def _loss(loss: Any, logits: Tensor, label: Tensor, head: Any, counted: Tensor) -> Tensor:
    """In mmsegmentation's mean: over all pixels, or over those counted; of all classes for the sigmoid."""
    options = {"ignore_index": head.ignore_index, "align_corners": head.align_corners}
    if loss.use_sigmoid:  # the op: sum over classes, mean over all pixels
        value = ops.upsampled_soft_margin_loss(logits, label, **options) * (label.numel() / logits.shape[1])
    else:  # the op: mean over the pixels counted
        value = ops.upsampled_cross_entropy(logits, label, **options) * counted
    return loss.loss_weight * value / (counted.clamp(min=1) if loss.avg_non_ignore else label.numel())


def _accuracy(logits: Tensor, label: Tensor, head: Any) -> Tensor:
    """Percent of the counted pixels that are right `(1,)`."""
    counted = label != head.ignore_index
    predicted = ops.upsampled_argmax(logits, (label.shape[1], label.shape[2]), align_corners=head.align_corners)
    right = (predicted == label) & counted
    eps = torch.finfo(torch.float32).eps
    return (right.sum().float().reshape(1) + eps) * 100 / (counted.sum() + eps)

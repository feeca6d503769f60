"""Segmentation heads of segmentation_models.pytorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from .handle import Method, Patch, find
from .served import reason_against

NAME = "smp"
OTHER_LOSSES = (torch.log_softmax, F.log_softmax, Tensor.log_softmax, F.logsigmoid, F.binary_cross_entropy_with_logits)


def smp() -> Patch:
    """Let `torch.nn.CrossEntropyLoss` of segmentation_models.pytorch's models read logits at feature resolution.

    Heads that upsample (FPN, PSPNet, PAN, DeepLabV3, DeepLabV3Plus, UPerNet, Segformer) do so with aligned corners, and
    the loss stands in the user's code. So in training the head returns what it always did, as a tensor that remembers
    what it was upsampled from; `torch.nn.functional.cross_entropy` of it is :func:`wilson.ops.upsampled_cross_entropy`
    of that. The logits at the image's size exist, for metrics and whatever else reads them; their softmax and gradient
    do not. The loss is float32 for models in half precision, too, and 0 instead of NaN where no pixel counts. A label
    that is no class is skipped, where PyTorch raises an error.

    Class weights, label smoothing, soft labels, other reductions, other losses (Dice, focal, smp's own ones), an
    activation in the head and compiled models go the library's own way. Models whose decoder has the image's
    size (Unet, UnetPlusPlus, MAnet, Linknet) upsample nothing, and DPT has a head of its own: nothing changes for them.
    Undo the patch before `torch.jit.script`.

    Returns:
        The handle, which undoes it.

    Raises:
        ImportError: segmentation_models.pytorch is not installed.
        RuntimeError: its version has another segmentation head.
    """
    owner = find(
        NAME, "segmentation-models-pytorch", "segmentation_models_pytorch.base.heads", "SegmentationHead",
        "forward", ("self", "input"),
    )  # fmt: skip
    return Patch(NAME, owner, "forward", _forward)


def _forward(original: Method, patch: Patch) -> Method:
    def forward(self: Any, input: Tensor) -> Tensor:
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if traced or not (self.training and torch.is_grad_enabled()) or not _upsamples(self):
            return original(self, input)
        if not isinstance(self[2].activation, nn.Identity):
            patch.falls_back("the head has an activation")
            return original(self, input)
        low = self[0](input)
        return UpsampledLogits.of(self[2](self[1](low)), low, patch) if low.requires_grad else self[2](self[1](low))

    return forward


def _upsamples(head: nn.Sequential) -> bool:
    """Whether it is a convolution, a bilinear upsampling with aligned corners, and an activation."""
    if len(head) != 3 or not isinstance(head[1], nn.Upsample):
        return False
    return head[1].mode == "bilinear" and head[1].align_corners is True and hasattr(head[2], "activation")


class UpsampledLogits(Tensor):
    """Logits at the image's size that remember those which they were upsampled from.

    Whatever is done with them gives plain tensors; only their cross-entropy is taken from the small ones.
    """

    _low: Tensor
    _made: int  # the version of the values: writing into them changes it
    _patch: Patch

    @staticmethod
    def of(full: Tensor, low: Tensor, patch: Patch) -> UpsampledLogits:
        logits = full.as_subclass(UpsampledLogits)
        logits._low, logits._made, logits._patch = low, full._version, patch
        return logits

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        logits = args[0] if args else None
        with torch._C.DisableTorchFunctionSubclass():
            if isinstance(logits, UpsampledLogits) and hasattr(logits, "_low"):
                if func is F.cross_entropy:
                    loss = _cross_entropy(*args, **kwargs)
                    if loss is not None:
                        return loss
                elif func in OTHER_LOSSES and torch.is_grad_enabled():
                    logits._patch.falls_back("the loss is no torch.nn.CrossEntropyLoss")
                elif func in (Tensor.register_hook, Tensor.retain_grad):
                    del logits._low  # the gradient must come by here
            return func(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def _cross_entropy(
    input: UpsampledLogits,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    """`torch.nn.functional.cross_entropy` of the small logits, or None where the op does not serve it."""
    reason = reason_against(input.shape[0], input.shape[1], target, ignore_index)
    if weight is not None:
        reason = "the loss has class weights"
    elif label_smoothing:
        reason = "the loss has label smoothing"
    elif reduction != "mean" or size_average is not None or reduce is not None:
        reason = "the loss has another reduction than the mean"
    elif input._version != input._made:
        reason = "the logits were written into"
    elif not reason and target.shape[1:] != input.shape[2:]:
        reason = "the labels have another size than the logits"
    if reason:
        input._patch.falls_back(reason)
        return None
    return ops.upsampled_cross_entropy(input._low, target, ignore_index=ignore_index, align_corners=True)

"""SegFormer of transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import ops
from .handle import Method, Patch, find
from .served import reason_against

NAME = "transformers_segformer"


def transformers_segformer() -> Patch:
    """Let `SegformerForSemanticSegmentation` take its loss from logits at feature resolution.

    The model resizes its logits to the labels' size and takes their cross-entropy. With the patch it takes
    :func:`wilson.ops.upsampled_cross_entropy`, with `config.semantic_loss_ignore_index`. Output and logits stay as they
    are; the loss is float32 for models in half precision, too, and 0 instead of NaN where no pixel counts. A label that
    is no class is skipped, where PyTorch raises an error.

    A model of one label (binary cross-entropy) goes the library's own way.

    Returns:
        The handle, which undoes it.

    Raises:
        ImportError: transformers is not installed.
        RuntimeError: its version has another SegFormer.
    """
    owner = find(
        NAME, "transformers", "transformers.models.segformer.modeling_segformer", "SegformerForSemanticSegmentation",
        "forward", ("self", "pixel_values", "labels"),
    )  # fmt: skip
    return Patch(NAME, owner, "forward", _forward)


def _forward(original: Method, patch: Patch) -> Method:
    def forward(self: Any, pixel_values: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if labels is None:
            return original(self, pixel_values, None, *args, **kwargs)
        classes, ignore_index = self.config.num_labels, self.config.semantic_loss_ignore_index
        reason = "a model of one label has a binary loss" if classes == 1 else ""
        reason = reason or reason_against(len(pixel_values), classes, labels, ignore_index)
        if reason:
            patch.falls_back(reason)
            return original(self, pixel_values, labels, *args, **kwargs)
        output = original(self, pixel_values, None, *args, **kwargs)
        if isinstance(output, tuple):  # as return_dict=False asks for
            return ops.upsampled_cross_entropy(output[0], labels, ignore_index=ignore_index), *output
        loss = ops.upsampled_cross_entropy(output.logits, labels, ignore_index=ignore_index)
        return type(output)(loss=loss, **output)  # a new one, whose first entry is the loss

    return forward

"""Maps (B, C, h, w) out of whatever a module of another library returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

PATCHES = (4, 8, 14, 16, 32)  # sides of the patches that tokens stand for
MOST_EXTRA = 9  # tokens in front of those of the image: class, distillation, registers


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a value of nested dicts, tuples and lists, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)


def output_map(output: Any) -> Tensor | None:
    """The map that a segmentation model returns: `logits` or `out` where it has names, else its first map."""
    named = output if isinstance(output, Mapping) else {}
    for name in ("logits", "out"):
        if isinstance(found := named.get(name), Tensor) and found.ndim == 4:
            return found
    return next((found for found in tensors(output) if found.ndim == 4 and found.is_floating_point()), None)


def feature_map(value: Any, image: Tensor) -> Tensor | None:
    """The map that an encoder returns: its last one where it returns several, or its tokens as a map.

    Args:
        value: what the encoder returned.
        image: what the model saw, (B, 3, H, W).
    """
    if isinstance(value, Mapping):
        value = value.get("out", value.get("last_hidden_state", value))
    found = [part for part in tensors(value) if part.is_floating_point()]
    maps = [part for part in found if part.ndim == 4]
    if maps:
        return maps[-1]
    tokens = [part for part in found if part.ndim == 3]
    return tokens_map(tokens[-1], image) if tokens else None


def layer_map(layer: nn.Module, output: Tensor, image: Tensor) -> Tensor | None:
    """The map that a classifier returns; a linear layer has its channels last."""
    if not isinstance(layer, nn.Linear):
        return output
    return output.movedim(-1, 1) if output.ndim == 4 else tokens_map(output, image)


def tokens_map(tokens: Tensor, image: Tensor) -> Tensor | None:
    """Tokens (B, N, C) as a map (B, C, h, w), without those in front that stand for no patch; None if none fits."""
    if tokens.ndim != 3:
        return None
    count, (height, width) = tokens.shape[1], image.shape[2:]
    for patch in PATCHES:
        h, w = height // patch, width // patch
        if h and w and 0 <= count - h * w <= MOST_EXTRA:
            return tokens[:, count - h * w :].transpose(1, 2).unflatten(2, (h, w))
    return None


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two maps are equal up to rounding."""
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-4 * b.abs().max())

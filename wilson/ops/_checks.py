"""Argument checks of the public ops: every text names the op, the argument, what was expected and what was found.

Only shapes, dtypes and plain numbers are looked at. The values of tensors are not: that would wait for the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def scores(op: str, name: str, value: Tensor, *, rank: int = 4, layout: str = "(B, C, H, W)") -> None:
    """A floating tensor of the given rank with no empty dimension but the batch."""
    tensor(op, name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float64, float32, bfloat16 or float16, got {value.dtype}")
    if value.dim() != rank:
        raise ValueError(f"{op}: {name} must be {layout}, got shape {tuple(value.shape)}")
    if 0 in value.shape[1:]:
        raise ValueError(f"{op}: {name} {layout} may be empty in its batch only, got shape {tuple(value.shape)}")


def tensor(op: str, name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def integers(op: str, name: str, value: Tensor) -> None:
    tensor(op, name, value)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{op}: {name} must be integers, got {value.dtype}; use {name}.long()")


def same_grid(op: str, name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """Same batch, height and width."""
    if value.shape[0] != like.shape[0] or value.shape[-2:] != like.shape[-2:]:
        raise ValueError(
            f"{op}: {name} must have the batch, height and width of {like_name} {tuple(like.shape)}, "
            f"got {tuple(value.shape)}"
        )


def same_shape(op: str, name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.shape != like.shape:
        raise ValueError(
            f"{op}: {name} must have the shape of {like_name} {tuple(like.shape)}, got {tuple(value.shape)}"
        )


def same_device(op: str, **tensors: Tensor | None) -> None:
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{op}: all tensors must be on one device, got {found}; move them with .to(device)")


def old_logits(op: str, value: Tensor, like_name: str, like: Tensor) -> None:
    """(B, O, H, W) on the grid of `like`, with 1 <= O <= C."""
    scores(op, "old_logits", value, layout="(B, O, H, W)")
    same_grid(op, "old_logits", value, like_name, like)
    if value.shape[1] > like.shape[1]:
        raise ValueError(
            f"{op}: old_logits has {value.shape[1]} classes, more than the {like.shape[1]} of {like_name}; "
            "old classes are the first of all classes"
        )


def prior(
    op: str, value: Tensor | None, weight: float | None, old_logits: Tensor, like_name: str, like: Tensor
) -> None:
    """(B, N, H, W) on the grid of `like`, of the N = C - O new classes, and its weight within 0..1; or neither."""
    if value is None or weight is None:
        if value is not weight:
            alone, lacking = ("prior", "prior_weight") if weight is None else ("prior_weight", "prior")
            raise ValueError(f"{op}: prior and prior_weight must be given together, got {alone} alone; pass {lacking}")
        return
    scores(op, "prior", value, layout="(B, N, H, W)")
    same_grid(op, "prior", value, like_name, like)
    classes, old = like.shape[1], old_logits.shape[1]
    if value.shape[1] != classes - old:
        hint = "; leave the old classes out" if value.shape[1] == classes else ""
        raise ValueError(
            f"{op}: prior must have the {classes - old} new classes of {classes}, of which {old} are old, "
            f"got {value.shape[1]}{hint}"
        )
    unit(op, "prior_weight", weight)


def image_labels(op: str, value: Tensor, batch: int, classes: int) -> None:
    """(B, C-1), no background column; bool, integer or floating 0/1."""
    tensor(op, "image_labels", value)
    if value.is_complex():
        raise TypeError(f"{op}: image_labels must be bool, integer or floating, got {value.dtype}")
    if value.shape != (batch, classes - 1):
        hint = "; leave the background column out" if value.shape == (batch, classes) else ""
        raise ValueError(
            f"{op}: image_labels must be (B, C-1) = {(batch, classes - 1)}, got {tuple(value.shape)}{hint}"
        )


def label_map(op: str, value: Tensor, batch: int, size: Sequence[int] | None = None) -> None:
    """(B, H', W') integers; (B, H, W) of a given size."""
    integers(op, "labels", value)
    if value.dim() != 3 or value.shape[0] != batch or 0 in value.shape[1:]:
        raise ValueError(f"{op}: labels must be (B, H, W) with B = {batch} and no empty side, got {tuple(value.shape)}")
    if size is not None and tuple(value.shape[1:]) != tuple(size):
        raise ValueError(f"{op}: labels must be (B, H, W) = {(batch, *size)}, got {tuple(value.shape)}")


def unit(op: str, name: str, value: float) -> None:
    """A number within 0..1."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{op}: {name} must be within 0..1, got {value!r}")


def positive(op: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{op}: {name} must be positive, got {value!r}")


def background_weight(op: str, value: float | str) -> float | None:
    """The weight of the localizer's background, or None for the minimum of both."""
    if value == "min":
        return None
    if isinstance(value, str):
        raise ValueError(f'{op}: background must be "min" or a weight within 0..1, got {value!r}')
    unit(op, "background", value)
    return float(value)


def ignored(op: str, ignore_index: int, classes: int) -> int:
    """A label to skip, which may be one of the classes: but 255, the default, is none that anybody chose to skip."""
    if ignore_index == 255 and classes > 255:
        raise ValueError(
            f"{op}: ignore_index must not be 255 with {classes} classes, as 255 is one of them; "
            "pass a negative number or one above the classes"
        )
    return int(ignore_index)


def size(op: str, value: Sequence[Any]) -> tuple[Any, Any]:
    """(H', W'), each at least 1; symbols of an export stay what they are."""
    if len(value) != 2 or value[0] < 1 or value[1] < 1:
        raise ValueError(f"{op}: size must be (H', W'), each at least 1, got {tuple(value)!r}")
    height, width = (side if isinstance(side, torch.SymInt) else int(side) for side in value)
    return height, width


def outside_classes(op: str, ignore_index: int, classes: int) -> None:
    if 0 <= ignore_index < classes:
        raise ValueError(
            f"{op}: ignore_index must not be one of the classes 0..{classes - 1}, got {ignore_index}; "
            "pass a negative number or one above the classes"
        )

"""Auxiliary heads: only a loss of their own would train them, and they would keep the old number of classes."""

from __future__ import annotations

import torch
from torch import nn

from wilson.errors import UserError

from . import heads
from .search import evaluating, run


def drop(model: nn.Module, channels: int, size: int) -> None:
    """Remove auxiliary heads; one that the model cannot run without, in eval mode or in training, stays as it is.

    Args:
        model: loses them in place.
        channels: number of the model's outputs, and of theirs.
        size: side of an image that the model takes.
    """
    kept: list[str] = []
    while (name := _next(model, channels, kept)) is not None:
        trial = heads.copied(model)
        _remove(trial, name)
        if _runs(trial, size):
            _remove(model, name)
        else:
            kept.append(name)
    config = getattr(model, "config", None)
    if not kept and getattr(config, "use_auxiliary_head", False):
        config.use_auxiliary_head = False  # type: ignore[union-attr]


def _next(model: nn.Module, channels: int, kept: list[str]) -> str | None:
    for name, module in model.named_modules():
        inside = any(name == other or name.startswith(f"{other}.") for other in kept)
        last = name.rpartition(".")[2]
        if not inside and "aux" in last and any(heads.outputs(layer) == channels for layer in module.modules()):
            return name
    return None


def _remove(model: nn.Module, name: str) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, None)


def _runs(trial: nn.Module, size: int) -> bool:
    """Whether a model that may be changed runs in both modes; batch-norm trains on two images at least."""
    device = next(trial.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            with evaluating(trial):
                run(trial, size, size)
                trial.train()
                run(trial, size, size, images=2)
        except UserError:
            return False
    return True

"""Classifiers with more outputs, and the numbers and names of classes that a model keeps of itself."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wilson.errors import UserError, first_line

CLASSIFIERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


AnyModule = TypeVar("AnyModule", bound=nn.Module)


def copied(model: AnyModule) -> AnyModule:
    """A copy of a model that shares nothing with it; UserError if it cannot be copied."""
    try:
        return deepcopy(model)
    except Exception as error:  # of whatever kind its parts raise
        raise UserError(
            f"the model cannot be copied ({type(error).__name__}: {first_line(error)}), and the given one has to stay "
            "as it is; give a module that copy.deepcopy takes"
        ) from error


def outputs(layer: nn.Module) -> int | None:
    """Number of outputs of a layer that may be a classifier; None for any other module."""
    if not isinstance(layer, CLASSIFIERS):
        return None
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def rows(layer: nn.Module) -> Tensor:
    """The weights of a classifier, one output after the other; writing to it writes to the classifier."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight


def check_extendable(name: str, layer: nn.Module) -> None:
    """Raise a UserError if a classifier cannot get more outputs that leave the old ones as they are."""
    if parametrize.is_parametrized(layer) or not isinstance(getattr(layer, "weight", None), nn.Parameter):
        raise UserError(
            f"classifier {name}: its weights are computed from others (weight or spectral norm); remove that first, "
            "for example with torch.nn.utils.parametrize.remove_parametrizations"
        )
    if getattr(layer, "groups", 1) != 1:
        raise UserError(
            f"classifier {name}: it has {layer.groups} groups, so a new class would see a part of the features only; "
            "expected one group"
        )


@torch.no_grad()
def extended(layer: nn.Module, new: int) -> nn.Module:
    """A copy of a classifier with `new` more outputs, in PyTorch's initialisation; the old ones are unchanged."""
    grown, old = deepcopy(layer), outputs(layer)
    assert old is not None
    shape = list(rows(layer).shape)
    shape[0] = old + new
    if isinstance(grown, nn.Linear):
        grown.out_features = old + new
    else:
        grown.out_channels = old + new  # type: ignore[assignment]
    if isinstance(layer, nn.ConvTranspose2d):
        shape[:2] = shape[1], shape[0]
    weight: Tensor = layer.weight  # type: ignore[assignment]
    grown.weight = nn.Parameter(weight.new_empty(shape), weight.requires_grad)
    if isinstance(layer.bias, Tensor):
        bias = grown.bias = nn.Parameter(layer.bias.new_empty(old + new), layer.bias.requires_grad)
    grown.reset_parameters()  # type: ignore[operator]
    rows(grown)[:old] = rows(layer)
    if isinstance(layer.bias, Tensor):
        bias[:old] = layer.bias
    return grown


def told_classes(model: nn.Module) -> tuple[str, ...] | None:
    """The names of a model's classes in the order of its outputs, as transformers keeps them; None without any."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not names or all(str(name).startswith("LABEL_") for name in names.values()):
        return None
    return tuple(str(names[key]) for key in sorted(names, key=int))


def tell_classes(model: nn.Module, names: Sequence[str]) -> None:
    """Let a model's own configuration know its classes, if it has one as transformers makes them."""
    config = getattr(model, "config", None)
    if hasattr(config, "id2label"):
        config.id2label = dict(enumerate(names))  # type: ignore[union-attr]
        config.label2id = {name: number for number, name in enumerate(names)}  # type: ignore[union-attr]
    for holder in (model, config, getattr(model, "decode_head", None)):
        for name in ("num_labels", "num_classes"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and value != len(names):
                setattr(holder, name, len(names))

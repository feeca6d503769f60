"""Finds classifier and features of a model by running it: nothing is read from its code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wilson.errors import UserError, first_line

from . import heads
from .maps import equal, feature_map, layer_map, output_map

SIDE = 128  # of the image that a model sees, where it tells no size of its own
STEPS = (1, 2, 4, 8, 14, 16, 32, 64)  # sides that a model takes are multiples of one of these
ENCODERS = ("backbone", "encoder")
INPUT = "classifier input"  # features that are what the classifier reads
QUERIES = ("masks_queries_logits", "pred_masks")
RESIZED: tuple[dict[str, Any], ...] = (
    {"mode": "bilinear", "align_corners": False},
    {"mode": "bilinear", "align_corners": True},
    {"mode": "nearest"},
)


class Features(NamedTuple):
    """A map of features of a model."""

    name: str  # a module, whose output it is, or INPUT
    channels: int
    stride: int  # pixels of the image per pixel of the map


@dataclass(frozen=True)
class Found:
    """The parts of a model by name, and the images that it takes."""

    classifier: str
    features: str  # a module, whose output they are, or INPUT
    feature_channels: int
    stride: int  # pixels of the image per pixel of the features
    finer: tuple[Features, ...]  # maps between these and the classifier: the last one of each finer stride
    parameters: int  # numbers in the modules that took part
    size: int  # side of the image that the model saw
    multiple: int | None  # sides of images must be multiples of it; None for a model that takes `size` alone

    def __post_init__(self) -> None:
        object.__setattr__(self, "finer", tuple(Features(*features) for features in self.finer))  # JSON has lists


@dataclass
class Run:
    """What went through the modules of a model for one image."""

    image: Tensor
    output: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]


def find(model: nn.Module, classifier: str | None, features: str | None, size: int | None) -> Found:
    """Find the parts of a model that are not named.

    Args:
        model: returns a map of scores, alone or in a dict, tuple or ModelOutput.
        classifier: name of the layer whose output, resized, is the model's; None to find it.
        features: name of the module whose output the localizer reads, or INPUT; None to find it.
        size: side of the image to run the model with; None for the one that its configuration tells, else 128.

    Raises:
        UserError: the model cannot be run, is of another kind, or a part is not found.
    """
    modules = dict(model.named_modules())
    for what, name in (("classifier", classifier), ("features", features)):
        if name is not None and name != INPUT and name not in modules:
            raise UserError(f"{what}: the model has no module '{name}'; {what}= takes a name of model.named_modules()")
    side = _configured(model) if size is None else size
    with evaluating(model):
        seen = run(model, side, side)
        channels = _channels(seen)
        name = classifier or _find_classifier(model, seen, channels)
        layer = modules[name]
        if heads.outputs(layer) is None:
            kinds = ", ".join(kind.__name__ for kind in heads.CLASSIFIERS)
            raise UserError(f"classifier {name}: expected one of {kinds}, got {type(layer).__name__}")
        if name not in seen.outputs or layer_map(layer, seen.outputs[name], seen.image) is None:
            raise UserError(f"classifier {name}: it takes no part in the model's output as a map; name another layer")
        heads.check_extendable(name, layer)
        where, found = _find_features(model, seen, name, features)
        chosen = _features(where, found, side)
        part = {id(p): p for module in ("", *seen.outputs) for p in modules[module].parameters(recurse=False)}
        count = sum(p.numel() for p in part.values())
        return Found(name, *chosen, _finer(seen, chosen, name, side), count, side, _multiple(model, side))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, without gradients; every module then is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def run(model: nn.Module, height: int, width: int, images: int = 1) -> Run:
    """Run a model with images of noise; UserError if it cannot be run."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UserError(
            "the model has no parameters, so there is nothing to train; give a torch.nn.Module with weights"
        )
    noise = torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(0))
    seen = Run(noise.to(parameter), None, {}, {})

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen.inputs[name], seen.outputs[name] = inputs, output

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
    try:
        seen.output = model(seen.image)
    except Exception as error:  # of whatever kind the library raises
        raise UserError(
            f"the model cannot be run with one image of {height} x {width} pixels: {type(error).__name__}: "
            f"{first_line(error)}; expected a module that takes images (B, 3, H, W); size= gives another side"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _configured(model: nn.Module) -> int:
    size = getattr(getattr(model, "config", None), "image_size", None)
    if isinstance(size, (tuple, list)):
        size = size[0]
    return size if isinstance(size, int) else SIDE


def _channels(seen: Run) -> int:
    """Number of the model's scores per pixel."""
    if any(hasattr(seen.output, name) or (isinstance(seen.output, dict) and name in seen.output) for name in QUERIES):
        raise UserError(
            "the model predicts masks by queries (as MaskFormer does), with no score per pixel and class, so no class "
            "can be added to its classifier; give a model with one output channel per class"
        )
    scores = output_map(seen.output)
    if scores is None:
        raise UserError(
            f"the model returned no map (B, C, h, w) of scores, but {type(seen.output).__name__}; give a segmentation "
            "model, or the part of it that computes scores"
        )
    if scores.shape[1] < 2:
        raise UserError(
            "the model has a single output channel, without one for the background; give a model with softmax over "
            "background and classes"
        )
    return scores.shape[1]


def _find_classifier(model: nn.Module, seen: Run, channels: int) -> str:
    """The layer whose output, resized, is the model's."""
    target = output_map(seen.output)
    assert target is not None
    modules = dict(model.named_modules())
    candidates = {
        name: found
        for name, output in seen.outputs.items()
        if heads.outputs(modules[name]) == channels
        and isinstance(output, Tensor)
        and (found := layer_map(modules[name], output, seen.image)) is not None
    }
    exact = [name for name, scores in candidates.items() if _becomes(scores, target)]
    if len(exact) == 1:
        return exact[0]
    moving = [name for name in candidates if _moves(model, modules[name], target, seen)]
    if len(exact) > 1 and len(both := [name for name in exact if name in moving]) == 1:
        return both[0]
    if len(moving) > 1:
        raise UserError(
            f"the model adds up {len(moving)} classifiers ({', '.join(moving)}), and a new class would need a part of "
            "each; give a model with one classifier, or one that returns the output of a single one"
        )
    listed = ", ".join(candidates) or "none"
    raise UserError(
        f"no layer was found whose output, resized, is the model's {channels} channels; layers with {channels} "
        f"outputs: {listed}. Name the right one with classifier="
    )


def _becomes(scores: Tensor, target: Tensor) -> bool:
    """Whether scores, resized and perhaps turned into probabilities, are the model's output."""
    same_size = scores.shape[2:] == target.shape[2:]
    resized = (
        [scores] if same_size else [F.interpolate(scores, target.shape[2:], **options) for options in RESIZED]
    )  # fmt: skip
    kinds = [(scores, scores.softmax(1), scores.log_softmax(1), scores.sigmoid()) for scores in resized]
    return any(equal(one, target) for kind in kinds for one in kind)


def _moves(model: nn.Module, layer: nn.Module, target: Tensor, seen: Run) -> bool:
    """Whether another bias of the layer, or another weight without one, changes the model's output."""
    changed = layer.bias if isinstance(layer.bias, Tensor) else heads.rows(layer)[:1]
    before = changed.clone()
    try:
        changed[0] += 1
        after = output_map(model(seen.image))
    finally:
        changed.copy_(before)
    return after is not None and not equal(after, target)


def _find_features(model: nn.Module, seen: Run, classifier: str, given: str | None) -> tuple[str, Tensor]:
    """The name of the features, and the features."""
    if given is not None and given != INPUT:
        found = feature_map(seen.outputs.get(given), seen.image)
        if found is None:
            raise UserError(f"features {given}: it returned no map; name another module, or '{INPUT}'")
        return given, found
    prefixes = {getattr(module, "base_model_prefix", "") for module in model.modules()} - {""}
    named = [name for name in seen.outputs if name.split(".")[-1] in {*ENCODERS, *prefixes}]
    for name in [] if given == INPUT else sorted(named, key=lambda name: name.count(".")):
        found = feature_map(seen.outputs[name], seen.image)
        if found is not None and not classifier.startswith(f"{name}."):
            return name, found
    found = feature_map(seen.inputs[classifier][0], seen.image)
    if found is None:
        raise UserError("the classifier reads no map; name the module whose output is one with features=")
    return INPUT, found


def _features(name: str, features: Tensor, side: int) -> Features:
    return Features(name, features.shape[1], max(1, side // features.shape[2]))


def _finer(seen: Run, coarse: Features, classifier: str, side: int) -> tuple[Features, ...]:
    """Maps that are computed after the features and before the classifier, and are finer."""
    if coarse.name == INPUT:
        return ()
    order = list(seen.outputs)  # as the modules ended
    between = order[order.index(coarse.name) + 1 : order.index(classifier)]
    maps = {name: seen.outputs[name] for name in between}
    maps[INPUT] = feature_map(seen.inputs[classifier][0], seen.image)
    found = (
        _features(name, value, side)
        for name, value in maps.items()
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[2] == value.shape[3] <= side
    )
    last = {features.stride: features for features in found if features.stride < coarse.stride}
    return tuple(last.values())


def _multiple(model: nn.Module, size: int) -> int | None:
    """The least step by which the side of an image may grow; None if the model takes one size alone."""

    def takes(width: int) -> bool:
        try:
            run(model, size, width)
        except UserError:
            return False
        return True

    return next((step for step in STEPS if takes(size + step)), None) if takes(2 * size) else None

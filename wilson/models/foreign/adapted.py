"""A segmentation model of any library behind the protocol, so that it can learn more classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wilson.errors import UserError
from wilson.models.protocol import Prediction, SegmentationModel

from . import auxiliary, heads
from .maps import feature_map, layer_map
from .search import INPUT, Found, find

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BACKGROUNDS = ("background", "__background__", "bg", "unlabeled", "unlabelled", "void", "other")

Output = Literal["softmax", "sigmoid"]


class Adapted(SegmentationModel):
    """A model of another library as methods need it; made by :func:`adapt`.

    The module itself stays as it is, in `module`. Its classifier and its features are read as they pass by, at their
    own resolution. The background comes first in the logits, wherever the module has it.

    Attributes:
        module: the model of the other library.
        found: names of its parts, and the images that it takes.
        softmax: whether its probabilities are a softmax over the classes; if not, each is a sigmoid.
        background: the module's channel of the background.
        class_names: names of the classes, background first; None if nobody told them.
        own_background: the module's name for the background, which it keeps.
        mean, std: of the image channels, RGB in 0..1.
    """

    def __init__(
        self,
        module: nn.Module,
        found: Found,
        softmax: bool,
        background: int,
        class_names: tuple[str, ...] | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        own_background: str = "background",
    ) -> None:
        super().__init__()
        self.module, self.found, self.softmax, self.background = module, found, softmax, background
        self.class_names, self.mean, self.std, self.own_background = class_names, mean, std, own_background

    def forward(self, image: Tensor) -> Prediction:
        image = self._fitting(image)
        seen: dict[str, Any] = {}

        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen["input"] = inputs[0]
            seen["logits"] = output

        def keep_features(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen["features"] = output

        # Registered for each pass: a copy of the module would carry hooks that write to the original.
        hooks = [self.classifier.register_forward_hook(keep)]
        if self.found.features != INPUT:
            hooks.append(self.module.get_submodule(self.found.features).register_forward_hook(keep_features))
        try:
            self.module(image)
        finally:
            for hook in hooks:
                hook.remove()
        logits = layer_map(self.classifier, seen["logits"], image)
        features = feature_map(seen.get("features", seen["input"]), image)
        assert logits is not None and features is not None
        return Prediction(self._ordered(logits), features)

    @property
    def classifier(self) -> nn.Module:
        """The layer that computes the logits."""
        return self.module.get_submodule(self.found.classifier)

    @property
    def classes(self) -> int:
        """Number of output channels, background included."""
        count = heads.outputs(self.classifier)
        assert count is not None
        return count

    @property
    def feature_channels(self) -> int:
        """Channels of the features."""
        return self.found.feature_channels

    def with_finer_features(self, stride: int) -> Adapted:
        """The same model with a finer map of features, of this stride or less; itself if it has none that is finer.

        Of the maps on the way to the classifier it is the coarsest, which has seen most of the image; the finest, if
        all are too coarse.
        """
        finer = {features.stride: features for features in self.found.finer}
        if self.found.stride <= stride or not finer:
            return self
        name, channels, stride = finer[max((s for s in finer if s <= stride), default=min(finer))]
        found = replace(self.found, features=name, feature_channels=channels, stride=stride)
        return Adapted(
            self.module, found, self.softmax, self.background, self.class_names, self.mean, self.std,
            self.own_background,
        ).train(self.training)  # fmt: skip

    @property
    def encoder(self) -> nn.Module:
        """The network that computes the features."""
        return _Features(self)

    def stages(self) -> list[nn.Module]:
        raise UserError("the stages of another library's model are not known, which plop and seam look at; use wilson")

    def extended(self, new: int) -> Adapted:
        """A copy with `new` more classes after the others, their weights fresh; the old outputs are unchanged.

        The classifier learns, frozen or not. Other layers that are frozen stay so, unless all of them are: then the
        whole copy learns, as a model that serves as the old one of a step is frozen.
        """
        model = heads.copied(self)
        grown = heads.extended(model.classifier, new)
        model.module.set_submodule(model.found.classifier, grown)
        others = _without(model.parameters(), list(grown.parameters()))
        frozen = not any(parameter.requires_grad for parameter in others)
        for parameter in model.parameters() if frozen else grown.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        names = self.names()
        model.class_names = None if self.class_names is None else (*names, *(f"new {i + 1}" for i in range(new)))
        heads.tell_classes(model.module, model.in_order_of_module(model.names()))
        return model

    @torch.no_grad()
    def start_from_background(self, new: int) -> None:
        """Give the last `new` classes the background's weights, and divide its probability among it and them."""
        layer, first = self.classifier, self.background
        if not isinstance(layer.bias, Tensor):
            raise UserError(
                f"classifier {self.found.classifier}: it has no bias, so new classes cannot share the background's "
                "probability; use a method that starts them afresh, such as wilson"
            )
        weights = heads.rows(layer)
        layer.bias[first] -= math.log(new + 1)
        weights[-new:] = weights[first]
        layer.bias[-new:] = layer.bias[first]

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """The parameters of encoder, decoder and classifier.

        Where the features lie behind the encoder, all but the classifier counts as the encoder.
        """
        last = list(self.classifier.parameters())
        whole = self.found.features in {INPUT, *(features.name for features in self.found.finer)}
        first = (self.module if whole else self.module.get_submodule(self.found.features)).parameters()
        encoder = _without(first, last)
        return {
            "encoder": encoder,
            "decoder": _without(self.module.parameters(), [*encoder, *last]),
            "classifiers": last,
        }

    def names(self) -> tuple[str, ...]:
        """Names of the classes, background first; numbers where nobody told them."""
        return self.class_names or ("background", *(f"class {number}" for number in range(1, self.classes)))

    def rename(self, names: Sequence[str]) -> None:
        """Give the classes these names, background first, and tell them to the module's own configuration."""
        if len(names) != self.classes:
            raise UserError(f"expected {self.classes} names of classes, got {len(names)}")
        self.class_names = tuple(names)
        heads.tell_classes(self.module, self.in_order_of_module(self.class_names))

    def in_order_of_module(self, names: Sequence[str]) -> list[str]:
        """Names, given with the background first, in the order of the module's outputs and with its own background."""
        rest = list(names[1:])
        return [*rest[: self.background], self.own_background, *rest[self.background :]]

    def _ordered(self, logits: Tensor) -> Tensor:
        """The logits with the background first."""
        if self.background == 0:
            return logits
        b = self.background
        return torch.cat([logits[:, b : b + 1], logits[:, :b], logits[:, b + 1 :]], 1)

    def _fitting(self, image: Tensor) -> Tensor:
        """The image at the nearest larger size that the module takes."""
        found = self.found
        if found.multiple is None:
            size = [found.size, found.size]
        else:
            step, rest = found.multiple, found.size % found.multiple
            size = [rest - (rest - side) // step * step for side in image.shape[2:]]
        if list(image.shape[2:]) == size:
            return image
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


class _Features(nn.Module):
    """The features of an adapted model alone."""

    def __init__(self, model: Adapted) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image).features


def adapt(
    model: nn.Module,
    *,
    classifier: str | None = None,
    features: str | None = None,
    output: Output = "softmax",
    background: int | str = 0,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: int | None = None,
) -> Adapted:
    """Make a segmentation model of any library one that can learn more classes from image-level labels.

    The model is run once with noise to find its classifier (the layer whose output, resized, is the model's) and its
    features (`backbone`, `encoder` or transformers' base model; else what the classifier reads). It keeps its weights;
    auxiliary heads are removed, as they would keep the old number of classes, unless it cannot run without.

    Args:
        model: takes images (B, 3, H, W), normalised, and returns scores (B, C, h, w) or a dict, tuple or ModelOutput
            that holds them, with C >= 2.
        classifier: name of the classifier among `model.named_modules()`; None to find it.
        features: name of the module whose output the localizer reads, or "classifier input"; None to find it.
        output: softmax for a model trained by cross-entropy, sigmoid for one trained by binary cross-entropy.
        background: the channel, or the name, of the class that stands for the background.
        classes: names of the model's outputs in their order; None for transformers' `id2label`, if there is one.
        mean: of the image channels, RGB in 0..1; None for ImageNet's.
        std: standard deviation of the image channels; None for ImageNet's.
        size: side in pixels of the image that the model is run with; None for the one in its configuration, else 128.

    Returns:
        The model behind the protocol of `wilson.models`. Its module is the given one.

    Raises:
        UserError: a part is not found or ambiguous, no class stands for the background, the model predicts masks by
            queries, adds up two classifiers, or cannot be run.

    Differentiable as the model is.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"expected a torch.nn.Module, got {type(model).__name__}; build the model first")
    if output not in ("softmax", "sigmoid"):
        raise UserError(f"output: expected softmax or sigmoid, got {output!r}")
    found = find(model, classifier, features, size)
    count = heads.outputs(model.get_submodule(found.classifier))
    assert count is not None
    names = heads.told_classes(model) if classes is None else tuple(classes)
    if names is not None and len(names) != count:
        raise UserError(f"classes: the model has {count} outputs, got {len(names)} names; give one for each")
    channel = _background(background, names, count)
    statistics = _statistic("mean", mean, IMAGENET[0]), _statistic("std", std, IMAGENET[1])
    auxiliary.drop(model, count, found.size)
    ordered = None if names is None else ("background", *names[:channel], *names[channel + 1 :])
    return Adapted(
        model, found, output == "softmax", channel, ordered, *statistics,
        "background" if names is None else names[channel],
    )  # fmt: skip


def _statistic(what: str, given: Sequence[float] | None, usual: tuple[float, ...]) -> tuple[float, ...]:
    """Mean or deviation of the image channels."""
    if given is None:
        return usual
    try:
        values = tuple(map(float, given))
    except (TypeError, ValueError):
        values = ()
    if len(values) != 3 or not all(map(math.isfinite, values)) or (what == "std" and min(values) <= 0):
        above = ", above 0" if what == "std" else ""
        raise UserError(f"{what}: expected a number each for red, green and blue in 0..1{above}, got {given}")
    return values


def _background(given: int | str, names: tuple[str, ...] | None, count: int) -> int:
    """The module's channel of the background."""
    if isinstance(given, str):
        if names is None or given not in names:
            known = "the classes have no names; give them with classes=" if names is None else f"got {_short(names)}"
            raise UserError(f"background: expected the name of a class, '{given}' is none: {known}")
        return names.index(given)
    if not 0 <= given < count:
        raise UserError(f"background: expected a channel from 0 to {count - 1}, got {given}")
    if names is not None and given == 0 and names[0].lower() not in BACKGROUNDS:
        found = [number for number, name in enumerate(names) if name.lower() in BACKGROUNDS]
        if len(found) != 1:
            raise UserError(
                f"no class of the model stands for the background ({_short(names)}); say which one does, for example "
                f"background='{names[0]}'"
            )
        return found[0]
    return given


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _without(parameters: Iterable[nn.Parameter], others: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    taken = {id(parameter) for parameter in others}
    return [parameter for parameter in parameters if id(parameter) not in taken]

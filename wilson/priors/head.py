"""Maps from a frozen ImageNet classifier whose head is applied at every position instead of to the pooled features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from PIL.Image import Image
from torch import Tensor

from wilson.data.transforms import Normalization
from wilson.errors import UserError, first_line
from wilson.models.weight_files import read_weights, take_weights

from .hyponyms import COUNT
from .maps import resized

Kind: TypeAlias = Literal["odds", "min-max"]
COUNTER = "num_batches_tracked"  # of batch-norm, which not every library keeps
TEMPERATURE = 3.0  # of the odds
LEAST = 224  # pixels of the short side: at 112 the maps are of little use


class Head:
    """Looks at an image and tells where a classifier sees each class.

    With s the 1000 logits at a position and K the ImageNet classes that stand for class n::

        odds:     p_n = sigmoid((logsumexp_{k in K} s_k - logsumexp_{k not in K} s_k) / 3)
        min-max:  p_n = max_{k in K} s_k, scaled to 0..1 within the image

    Args:
        model: name of a timm model of maps, as in tf_efficientnet_lite0.
        weights: local file that holds all of its weights, the head's 1000 outputs included.
        members: numbers of the ImageNet classes of each class.
        kind: of the maps.
        size: short side of the image, at least 224.
        device: runs the model.

    Raises:
        UserError: there is no such model, it has no maps before its head, the weights do not fit, or the size is too
            small.
    """

    def __init__(
        self,
        model: str,
        weights: Path,
        members: Sequence[Sequence[int]],
        kind: Kind = "odds",
        size: int = LEAST,
        device: torch.device | None = None,
    ) -> None:
        if size < LEAST:
            raise UserError(f"--size: expected at least {LEAST}, got {size}; smaller images give maps of little use")
        assert kind in get_args(Kind)
        self.model = open_classifier(model, weights).to(device)
        self.members, self.kind, self.size, self.device = members, kind, size, device
        config = self.model.pretrained_cfg
        self.normalization = Normalization(tuple(config["mean"]), tuple(config["std"]))

    @torch.no_grad()
    def __call__(self, image: Image) -> Tensor:
        """Maps (N, h, w) in 0..1 of an upright RGB image."""
        stride = self.model.feature_info[-1]["reduction"]
        pixels = resized(image, self.size, stride, self.normalization).to(self.device)
        return class_maps(dense_logits(self.model, pixels)[0], self.members, self.kind)


def open_classifier(name: str, weights: Path) -> Any:
    """A timm model with 1000 outputs and local weights, in eval mode; UserError if there is none of the kind."""
    import timm

    try:
        model = timm.create_model(name, pretrained=False)
    except Exception as error:  # of several kinds for a name that it does not know
        raise UserError(
            f"--model {name}: {first_line(error)}; give a timm model such as tf_efficientnet_lite0"
        ) from error
    if getattr(model, "num_classes", None) != COUNT or not getattr(model, "feature_info", None):
        raise UserError(f"--model {name}: has no {COUNT} outputs; give a classifier of ImageNet's {COUNT} classes")
    take_weights(model, renamed(read_weights(weights)[0], model.state_dict()), weights)
    return model.eval()


def renamed(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of another library's file by the names wanted, if they have the wanted shapes in the same order."""
    given, names = ([name for name in tensors if not name.endswith(COUNTER)] for tensors in (state, wanted))
    if [state[name].shape for name in given] != [wanted[name].shape for name in names]:
        return state
    return {name: state[other] for name, other in zip(names, given, strict=True)} if set(given) != set(names) else state


def dense_logits(model: Any, images: Tensor) -> Tensor:
    """The logits of every position: images (B, 3, H, W) -> (B, 1000, h, w).

    Each position goes through the head as a map of one pixel, which pooling leaves as it is.
    """
    features = model.forward_features(images)
    if features.dim() != 4 or features.shape[1] != model.num_features:
        raise UserError(
            "--model: expected a network of maps (B, C, h, w); choose a convolutional one, such as resnet50"
        )
    batch, channels, height, width = features.shape
    positions = features.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
    logits: Tensor = model.forward_head(positions)
    return logits.view(batch, height, width, -1).permute(0, 3, 1, 2)


def class_maps(logits: Tensor, members: Sequence[Sequence[int]], kind: Kind) -> Tensor:
    """Maps (N, h, w) in 0..1 from logits (K, h, w) and the K's of each of N classes; see :class:`Head`."""
    found = []
    for chosen in members:
        others = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        others[list(chosen)] = False
        if kind == "odds":
            odds = logits[list(chosen)].logsumexp(0) - logits[others].logsumexp(0)
            found.append((odds / TEMPERATURE).sigmoid())
        else:
            highest = logits[list(chosen)].amax(0)
            low, high = highest.min(), highest.max()
            found.append((highest - low) / (high - low).clamp(min=1e-12))
    return torch.stack(found)

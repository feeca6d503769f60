"""The interface between methods and segmentation models, whatever network is behind it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn


class Prediction(NamedTuple):
    """The output of a model: logits (B, C, h, w) and features (B, feature_channels, h', w'), which may be coarser."""

    logits: Tensor
    features: Tensor


class SegmentationModel(nn.Module):
    """A network from images to logits that can learn more classes. Methods use nothing else of a model.

    Attributes:
        softmax: whether the probabilities are the softmax of the logits over the classes. Those of this project's own
            models are sigmoids. The losses of WILSON read the former through `ops.one_versus_rest`.
    """

    softmax: bool = False

    def forward(self, image: Tensor) -> Prediction:
        """Compute logits and features of normalised images (B, 3, H, W)."""
        raise NotImplementedError

    @property
    def classes(self) -> int:
        """C, number of output channels, background included."""
        raise NotImplementedError

    @property
    def feature_channels(self) -> int:
        """Channels of the features."""
        raise NotImplementedError

    @property
    def encoder(self) -> nn.Module:
        """The network that computes the features: (B, 3, H, W) -> (B, feature_channels, h, w)."""
        raise NotImplementedError

    def extended(self, new: int) -> SegmentationModel:
        """The model of the next step: a copy with `new` more classes, their weights fresh."""
        raise NotImplementedError

    def start_from_background(self, new: int) -> None:
        """Give the last `new` classes the background's weights, and divide its probability among it and them."""
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """The stages of the encoder in order, for methods that compare their outputs."""
        raise NotImplementedError

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """The parameters by group: encoder, decoder, classifiers."""
        raise NotImplementedError

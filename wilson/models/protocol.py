"""What a method knows of a segmentation model, whoever made it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn


class Prediction(NamedTuple):
    """What the model says of a batch: logits (B, C, h, w) at feature resolution, and the encoder's features."""

    logits: Tensor
    features: Tensor


class SegmentationModel(nn.Module):
    """A network from images to logits that can be taught more classes. Methods know no more of a model than this."""

    def forward(self, image: Tensor) -> Prediction:
        """Logits and features of normalised images (B, 3, H, W)."""
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
        """What makes the features of an image: (B, 3, H, W) -> (B, feature_channels, h, w)."""
        raise NotImplementedError

    def extended(self, new: int) -> SegmentationModel:
        """The model of the next step: a copy with `new` more classes, whose weights are fresh."""
        raise NotImplementedError

    def start_from_background(self, new: int) -> None:
        """Give the last `new` classes the background's weights, and share its probability among it and them."""
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """The stages of the encoder, in their order, for methods that compare their outputs."""
        raise NotImplementedError

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """The parameters as encoder, decoder and classifiers."""
        raise NotImplementedError

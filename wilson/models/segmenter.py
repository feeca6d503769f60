"""The segmentation model: backbone, decoder, and one 1x1 classifier per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .backbone import Activation, Backbone, build_backbone
from .decoder import DILATIONS, DeepLabV3Head


class Prediction(NamedTuple):
    """What the model says of a batch: logits (B, C, h, w) at feature resolution, and the encoder's features."""

    logits: Tensor
    features: Tensor


class Segmenter(nn.Module):
    """A segmentation model that grows by one classifier with every step.

    Args:
        backbone: with `channels` and `stride`.
        head_channels: channels of the decoder, 256 as published.
        classes: number of channels that each step adds; the first counts the background.
        window: the training crop over the stride, for the global branch at test time.
        dilations: of the decoder; None for the published ones of the stride.
    """

    def __init__(
        self,
        backbone: Backbone,
        head_channels: int,
        classes: Sequence[int],
        window: int,
        dilations: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        dilations = DILATIONS[backbone.stride] if dilations is None else dilations
        self.backbone = backbone
        self.head = DeepLabV3Head(backbone.channels, head_channels, dilations, window)
        self.classifiers = nn.ModuleList([nn.Conv2d(head_channels, count, 1) for count in classes])

    def forward(self, image: Tensor) -> Prediction:
        features = self.backbone(image)
        decoded = self.head(features)
        return Prediction(torch.cat([classifier(decoded) for classifier in self.classifiers], 1), features)

    @property
    def classes(self) -> int:
        """Number of output channels, background included."""
        return sum(classifier.out_channels for classifier in self.classifiers)  # type: ignore[misc]

    def start_from(self, old: Segmenter) -> None:
        """Take over all weights of the model before this step; the new classifier keeps its initialisation."""
        self.load_state_dict(old.state_dict(), strict=False)


def build_segmenter(
    backbone: str,
    stride: int,
    weights: str,
    head_channels: int,
    classes: Sequence[int],
    crop: int,
    dilations: Sequence[int] | None = None,
    activation: Activation = "own",
) -> Segmenter:
    """A segmentation model from plain values; see :class:`Segmenter` and :func:`build_backbone`."""
    features = build_backbone(backbone, stride, weights, activation)
    return Segmenter(features, head_channels, classes, max(1, crop // stride), dilations)

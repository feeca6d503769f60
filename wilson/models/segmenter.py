"""The segmentation model: backbone, decoder, and one 1x1 classifier per step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from wilson.config import Activation, ModelConfig

from .backbone import Backbone, build_backbone
from .decoder import DeepLabV3Head, usual_dilations
from .protocol import Prediction, SegmentationModel


class Segmenter(SegmentationModel):
    """A segmentation model that gains one classifier with every step.

    Args:
        backbone: with `channels` and `stride`.
        head_channels: channels of the decoder, 256 as published.
        classes: number of output channels that each step adds; the first number includes the background.
        window: the training crop over the stride, rounded up, for the decoder's global branch in eval mode.
        dilations: of the decoder; None for the usual ones of the stride.
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
        dilations = usual_dilations(backbone.stride) if dilations is None else dilations
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

    @property
    def feature_channels(self) -> int:
        """Channels of the features."""
        return self.backbone.channels

    @property
    def encoder(self) -> nn.Module:
        """The backbone."""
        return self.backbone

    def extended(self, new: int) -> Segmenter:
        """The model of the next step: a copy with one more classifier of `new` classes, in PyTorch's initialisation."""
        model = deepcopy(self)
        model.classifiers.append(nn.Conv2d(self._first_classifier.in_channels, new, 1))
        return model

    @torch.no_grad()
    def start_from_background(self, new: int) -> None:
        """Give the last classifier, of `new` classes, the background's weights, and divide its probability among them.

        The biases of background and new classes become the background's bias less log(new + 1), so that together they
        are as probable as the background was (MiB, Cermelli et al., CVPR 2020, Sec. 3.2).
        """
        first, last = self._first_classifier, self.classifiers[-1]
        first.bias[0] -= math.log(new + 1)  # type: ignore[index]
        last.weight.copy_(first.weight[:1].expand_as(last.weight))  # type: ignore[operator,arg-type]
        last.bias.fill_(first.bias[0])  # type: ignore[operator,index]

    @property
    def _first_classifier(self) -> nn.Conv2d:
        return self.classifiers[0]  # type: ignore[return-value]

    def stages(self) -> list[nn.Module]:
        """The stages of the backbone, in order."""
        return self.backbone.stages()

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """The parameters of encoder, decoder and classifiers."""
        return {
            "encoder": self.backbone.parameters(),
            "decoder": self.head.parameters(),
            "classifiers": self.classifiers.parameters(),
        }


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
    """Build a segmentation model from plain values.

    Args:
        backbone, stride, weights, activation: see :func:`build_backbone`.
        head_channels, classes, dilations: see :class:`Segmenter`.
        crop: side of the training crops in pixels.
    """
    features = build_backbone(backbone, stride, weights, activation)
    return Segmenter(features, head_channels, classes, -(-crop // stride), dilations)


def new_model(config: ModelConfig, classes: Sequence[int], crop: int, weights: str) -> Segmenter:
    """Build a fresh model from a configuration.

    Args:
        config: of the network.
        classes: number of output channels that each step adds; the first number includes the background.
        crop: side of the training crops in pixels.
        weights: of the backbone, see :func:`build_backbone`.
    """
    return build_segmenter(
        config.backbone,
        config.stride,
        weights,
        config.head_channels,
        classes,
        crop,
        config.dilations,
        config.activation,
    )

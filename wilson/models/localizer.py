"""The localizer: scores of all classes at every feature pixel, learned from image-level labels."""

import torch
from torch import Tensor, nn

from .layers import NormAct


class Localizer(nn.Sequential):
    """3x3 convolution, norm, 3x3 convolution, norm, 1x1 convolution: (B, C_in, H, W) -> scores (B, classes, H, W).

    Each step trains a fresh one and drops it at the end.

    Args:
        inputs: C_in, channels of the features.
        channels: of the hidden layers.
        classes: number of classes, background included.
    """

    def __init__(self, inputs: int, channels: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, channels, 3, padding=1, bias=False),
            NormAct(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            NormAct(channels),
            nn.Conv2d(channels, classes, 1),
        )

    def eval_scores(self, features: Tensor) -> Tensor:
        """Scores computed in eval mode, without gradient; pseudo-labels come from them. Every layer keeps its mode."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        with torch.no_grad():
            scores = self(features)
        for module, training in modes:
            module.training = training
        return scores

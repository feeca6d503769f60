"""The DeepLabV3 head (Chen et al., arXiv 1706.05587), laid out as in WILSON's published weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import LEAKY_SLOPE, NormAct

DILATIONS = {8: (12, 24, 32), 16: (6, 12, 18)}  # by stride, as published


def usual_dilations(stride: int) -> tuple[int, ...]:
    """The published dilations of a stride; of another stride, those that reach as far in the image as at 16."""
    return DILATIONS.get(stride) or tuple(max(1, round(16 * d / stride)) for d in DILATIONS[16])


class DeepLabV3Head(nn.Module):
    """Atrous spatial pyramid pooling: (B, C_in, H, W) -> (B, channels, H, W).

    In training, the global branch averages over the whole map. In eval mode, it averages over a sliding window of the
    training crop's size, with replicate padding, so that it sees a larger image as it saw the crops. The convolutions
    start from Xavier's normal distribution, as published.

    Args:
        inputs: C_in, channels of the features.
        channels: channels of each branch and of the result, 256 as published.
        dilations: of the 3x3 branches, three as published.
        window: height and width of the sliding window in feature pixels: the training crop over the stride.
    """

    def __init__(self, inputs: int, channels: int, dilations: Sequence[int], window: int) -> None:
        super().__init__()
        self.window = window
        self.map_convs = nn.ModuleList(
            [nn.Conv2d(inputs, channels, 1, bias=False)]
            + [nn.Conv2d(inputs, channels, 3, padding=d, dilation=d, bias=False) for d in dilations]
        )
        self.map_bn = NormAct(channels * len(self.map_convs))
        self.global_pooling_conv = nn.Conv2d(inputs, channels, 1, bias=False)
        self.global_pooling_bn = NormAct(channels)
        self.red_conv = nn.Conv2d(channels * len(self.map_convs), channels, 1, bias=False)
        self.pool_red_conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.red_bn = NormAct(channels)
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.xavier_normal_(conv.weight, nn.init.calculate_gain("leaky_relu", LEAKY_SLOPE))

    def forward(self, features: Tensor) -> Tensor:
        out = self.red_conv(self.map_bn(torch.cat([conv(features) for conv in self.map_convs], 1)))
        pooled = self.pool_red_conv(self.global_pooling_bn(self.global_pooling_conv(self._pool(features))))
        return self.red_bn(out + pooled)

    def _pool(self, features: Tensor) -> Tensor:
        height, width = features.shape[2:]
        if self.training or (height <= self.window and width <= self.window):
            return features.mean((2, 3), keepdim=True)
        rows, columns = min(self.window, height), min(self.window, width)
        pooled = F.avg_pool2d(features, (rows, columns), stride=1)
        top, left = (rows - 1) // 2, (columns - 1) // 2
        return F.pad(pooled, (left, columns - 1 - left, top, rows - 1 - top), mode="replicate")

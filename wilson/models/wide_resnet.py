"""Wide-ResNet-38 in its A2 form (Wu et al., arXiv 1611.10080): the backbone of COCO-to-VOC, at stride 8.

Shapes for an image (B, 3, H, W); convolutions are 3x3 unless noted:

| part | blocks | channels inside, last one out | dilation | out |
| --- | --- | --- | --- | --- |
| mod1 | one convolution | 64 | 1 | (B, 64, H, W) |
| max-pool, mod2 | 3 | 128, 128 | 1 | (B, 128, H/2, W/2) |
| max-pool, mod3 | 3 | 256, 256 | 1 | (B, 256, H/4, W/4) |
| mod4, stride 2 in its first block | 6 | 512, 512 | 1 | (B, 512, H/8, W/8) |
| mod5 | 3 | 512, 1024 | 2 | (B, 1024, H/8, W/8) |
| mod6 | 1 | 512 (1x1), 1024, 2048 (1x1) | 4 | (B, 2048, H/8, W/8) |
| mod7 | 1 | 1024 (1x1), 2048, 4096 (1x1) | 4 | (B, 4096, H/8, W/8) |
| bn_out | norm and activation | | | (B, 4096, H/8, W/8) |

The parts have the names of the published weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from .layers import NormAct


class Stage(NamedTuple):
    """Blocks of equal widths; the first one has the stride."""

    blocks: int
    widths: tuple[int, ...]
    stride: int = 1
    dilation: int = 1
    dropout: float = 0.0  # of whole channels, before the last convolution of each block


STAGES = (
    Stage(3, (128, 128)),
    Stage(3, (256, 256)),
    Stage(6, (512, 512), stride=2),
    Stage(3, (512, 1024), dilation=2),
    Stage(1, (512, 1024, 2048), dilation=4, dropout=0.3),
    Stage(1, (1024, 2048, 4096), dilation=4, dropout=0.5),
)


class PreActivationBlock(nn.Module):
    """A residual block with a norm before every convolution and a plain sum at its end.

    It maps (B, C_in, H, W) to (B, widths[-1], H/stride, W/stride).

    Args:
        inputs: C_in.
        widths: two for a pair of 3x3 convolutions, three for 1x1, 3x3, 1x1.
        stride: of the first convolution.
        dilation: of the 3x3 convolutions.
        dropout: probability that a channel is dropped before the last convolution.
    """

    def __init__(self, inputs: int, widths: Sequence[int], stride: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = NormAct(inputs)
        kernels = (3, 3) if len(widths) == 2 else (1, 3, 1)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (kernel, before, after) in enumerate(zip(kernels, (inputs, *widths), widths, strict=False), 1):
            if i > 1:
                layers[f"bn{i}"] = NormAct(before)
            if i == len(widths) and dropout:
                layers["dropout"] = nn.Dropout2d(dropout)
            spacing = dilation if kernel == 3 else 1
            layers[f"conv{i}"] = nn.Conv2d(
                before, after, kernel, stride if i == 1 else 1, spacing * (kernel // 2), spacing, bias=False
            )
        self.convs = nn.Sequential(layers)
        same = inputs == widths[-1] and stride == 1
        self.proj_conv = None if same else nn.Conv2d(inputs, widths[-1], 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.bn1(x)
        return self.convs(activated) + (x if self.proj_conv is None else self.proj_conv(activated))


class WideResNet(nn.Sequential):
    """Wide-ResNet-38 without its classifier: (B, 3, H, W) -> (B, channels, H/8, W/8).

    Args:
        stages: mod2 to mod7; the default is the published network.
        width: channels of mod1.
    """

    stride = 8

    def __init__(self, stages: Sequence[Stage] = STAGES, width: int = 64) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["mod1"] = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, width, 3, padding=1, bias=False)))
        for number, stage in enumerate(stages, 2):
            if number < 4:  # later stages keep the resolution or have a stride
                layers[f"pool{number}"] = nn.MaxPool2d(3, stride=2, padding=1)
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(1, stage.blocks + 1):
                stride = stage.stride if i == 1 else 1
                blocks[f"block{i}"] = PreActivationBlock(width, stage.widths, stride, stage.dilation, stage.dropout)
                width = stage.widths[-1]
            layers[f"mod{number}"] = nn.Sequential(blocks)
        layers["bn_out"] = NormAct(width)
        super().__init__(layers)
        self.channels = width

    def stages(self) -> list[nn.Module]:
        """The stages mod2 to mod7."""
        return [child for name, child in self.named_children() if name.startswith("mod") and name != "mod1"]

"""The published networks in plain torch.nn, their modules named as in the published files.

Written down from the description of the layouts alone: nothing of wilson.models is used.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ABN(nn.Module):
    """In-place ABN: batch-norm with the scale |weight| + 1e-5, then leaky ReLU 0.01 unless it is switched off."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, activation: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs() + 1e-5
        x = F.batch_norm(x, self.running_mean, self.running_var, scale, self.bias, self.training, 0.1, 1e-5)
        return torch.where(x > 0, x, 0.01 * x) if self.activation else x


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            OrderedDict(
                conv1=conv(inputs, width, 1),
                bn1=ABN(width),
                conv2=conv(width, width, 3, stride, dilation),
                bn2=ABN(width),
                conv3=conv(width, 4 * width, 1),
                bn3=ABN(4 * width, activation=False),
            )
        )
        if stride > 1 or inputs != 4 * width:
            self.proj_conv = conv(inputs, 4 * width, 1, stride)
            self.proj_bn = ABN(4 * width, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.proj_bn(self.proj_conv(x)) if hasattr(self, "proj_conv") else x
        return F.leaky_relu(self.convs(x) + shortcut, 0.01)


class ResNet(nn.Sequential):
    """The published one has the blocks 3, 4, 23, 3 in mod2 to mod5, and the width 64 in mod2."""

    def __init__(self, blocks: Sequence[int], output_stride: int, width: int = 64) -> None:
        strides, dilations = {16: ((1, 2, 2, 1), (1, 1, 1, 2)), 8: ((1, 2, 1, 1), (1, 1, 2, 4))}[output_stride]
        stem = OrderedDict(conv1=nn.Conv2d(3, 64, 7, 2, 3, bias=False), bn1=ABN(64), pool1=nn.MaxPool2d(3, 2, 1))
        modules: OrderedDict[str, nn.Module] = OrderedDict(mod1=nn.Sequential(stem))
        inputs = 64
        for i, count in enumerate(blocks):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            for b in range(count):
                stage[f"block{b + 1}"] = Bottleneck(inputs, width * 2**i, 1 if b else strides[i], dilations[i])
                inputs = 4 * width * 2**i
            modules[f"mod{i + 2}"] = nn.Sequential(stage)
        super().__init__(modules)
        self.channels = inputs


class IdentityBlock(nn.Module):
    def __init__(self, inputs: int, widths: Sequence[int], stride: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = ABN(inputs)
        if len(widths) == 2:
            layers = OrderedDict(
                conv1=conv(inputs, widths[0], 3, stride, dilation),
                bn2=ABN(widths[0]),
                conv2=conv(widths[0], widths[1], 3, 1, dilation),
            )
        else:
            layers = OrderedDict(
                conv1=conv(inputs, widths[0], 1, stride),
                bn2=ABN(widths[0]),
                conv2=conv(widths[0], widths[1], 3, 1, dilation),
                bn3=ABN(widths[1]),
                dropout=nn.Dropout2d(dropout),
                conv3=conv(widths[1], widths[2], 1),
            )
        self.convs = nn.Sequential(layers)
        if stride > 1 or inputs != widths[-1]:
            self.proj_conv = conv(inputs, widths[-1], 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.bn1(x)
        shortcut = self.proj_conv(normed) if hasattr(self, "proj_conv") else x
        return shortcut + self.convs(normed)


class WideResNet(nn.Sequential):
    """Wide-ResNet-38 A2; all widths divided by `slimmer`."""

    def __init__(self, slimmer: int = 1) -> None:
        widths = [(128, 128), (256, 256), (512, 512), (512, 1024), (512, 1024, 2048), (1024, 2048, 4096)]
        inputs = 64 // slimmer
        modules: OrderedDict[str, nn.Module] = OrderedDict(mod1=nn.Sequential(OrderedDict(conv1=conv(3, inputs, 3))))
        for i, (count, wide) in enumerate(zip((3, 3, 6, 3, 1, 1), widths, strict=True)):
            slim = [w // slimmer for w in wide]
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            for b in range(count):
                stride, dilation, dropout = (
                    2 if (i, b) == (2, 0) else 1,
                    (1, 1, 1, 2, 4, 4)[i],
                    {4: 0.3, 5: 0.5}.get(i, 0),
                )
                stage[f"block{b + 1}"] = IdentityBlock(inputs, slim, stride, dilation, dropout)
                inputs = slim[-1]
            if i < 2:
                modules[f"pool{i + 2}"] = nn.MaxPool2d(3, 2, 1)
            modules[f"mod{i + 2}"] = nn.Sequential(stage)
        super().__init__(OrderedDict(modules, bn_out=ABN(inputs)))
        self.channels = inputs


class Head(nn.Module):
    def __init__(self, inputs: int, channels: int, dilations: Sequence[int], window: int) -> None:
        super().__init__()
        self.map_convs = nn.ModuleList(
            [conv(inputs, channels, 1), *(conv(inputs, channels, 3, dilation=d) for d in dilations)]
        )
        self.map_bn = ABN(4 * channels)
        self.global_pooling_conv, self.global_pooling_bn = conv(inputs, channels, 1), ABN(channels)
        self.red_conv, self.pool_red_conv = conv(4 * channels, channels, 1), conv(channels, channels, 1)
        self.red_bn = ABN(channels)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        out = self.red_conv(self.map_bn(torch.cat([c(x) for c in self.map_convs], 1)))
        if self.training:
            pooled = x.mean((2, 3), keepdim=True)
        else:
            rows, columns = (min(self.window, side) for side in x.shape[2:])
            pooled = F.avg_pool2d(x, (rows, columns), 1)
            top, left = (rows - 1) // 2, (columns - 1) // 2
            pooled = F.pad(pooled, (left, columns - 1 - left, top, rows - 1 - top), mode="replicate")
        pooled = self.pool_red_conv(self.global_pooling_bn(self.global_pooling_conv(pooled)))
        return self.red_bn(out + pooled)


class Network(nn.Module):
    """Backbone, head, and one classifier per step."""

    def __init__(self, body: ResNet | WideResNet, head: Head, classes: Sequence[int]) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.cls = nn.ModuleList([nn.Conv2d(head.red_bn.weight.numel(), count, 1) for count in classes])

    def forward(self, image: Tensor) -> Tensor:
        decoded = self.head(self.body(image))
        return torch.cat([classifier(decoded) for classifier in self.cls], 1)


def randomize(network: nn.Module) -> nn.Module:
    """Random numbers everywhere, the norms' scales of either sign and their statistics included."""
    for module in network.modules():
        if isinstance(module, ABN):
            nn.init.uniform_(module.weight, -1, 1)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def data_parallel(network: nn.Module) -> dict[str, Tensor]:
    """Its state dict, as data-parallel training names it."""
    return {f"module.{key}": value for key, value in network.state_dict().items()}

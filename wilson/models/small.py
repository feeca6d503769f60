"""The demo's backbone: a small residual network at stride 4 that trains from scratch within minutes."""

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import LEAKY_SLOPE, NormAct


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, C_in, H, W) -> (B, C_out, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = NormAct(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return F.leaky_relu(out + self.shortcut(x), LEAKY_SLOPE)


class SmallResNet(nn.Sequential):
    """A small residual network: (B, 3, H, W) -> (B, 64, H/4, W/4)."""

    channels = 64
    stride = 4

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 32, 5, 2, 2, bias=False),
            NormAct(32),
            ResidualBlock(32, 48, stride=2),
            ResidualBlock(48, 48),
            ResidualBlock(48, 64),
            ResidualBlock(64, 64),
        )

    def stages(self) -> list[nn.Module]:
        """The residual blocks."""
        return [child for child in self.children() if isinstance(child, ResidualBlock)]

"""The norm layer of all networks but timm's."""

from torch import nn

LEAKY_SLOPE = 0.01  # of the published network's activated batch-norm


class NormAct(nn.Sequential):
    """Batch-norm followed by leaky ReLU of slope 0.01; `nn.SyncBatchNorm.convert_sync_batchnorm` can convert it."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels), nn.LeakyReLU(LEAKY_SLOPE, inplace=True))

"""wilson.ops in the structure of mmsegmentation: a registered loss, and a decode head that hands it small logits.

With mmsegmentation installed the classes go into its own registry and configuration files can name them
(`loss_decode=dict(type="WilsonUpsampledLoss")`); without it the few lines of registry below stand in, and everything
runs. Run it with `python -m examples.mmseg_decode_head`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.compare import compare
from wilson import ops

try:
    from mmseg.registry import MODELS
except ImportError:

    class Registry:
        """What mmengine's registry does, as far as it is used here."""

        def __init__(self) -> None:
            self.classes: dict[str, type] = {}

        def register_module(self):
            def register(cls: type) -> type:
                self.classes[cls.__name__] = cls
                return cls

            return register

        def build(self, config: dict):
            options = dict(config)
            return self.classes[options.pop("type")](**options)

    MODELS = Registry()


@MODELS.register_module()
class WilsonUpsampledLoss(nn.Module):
    """A loss of small logits against a full-size mask; called as mmsegmentation calls its losses.

    Args:
        use_sigmoid: binary cross-entropy against the one-hot mask instead of softmax cross-entropy.
        loss_weight: factor of the loss.
        loss_name: its key in the dictionary of losses; those that begin with "loss" are summed.
    """

    def __init__(self, use_sigmoid: bool = False, loss_weight: float = 1.0, loss_name: str = "loss_wilson") -> None:
        super().__init__()
        self.loss = ops.upsampled_soft_margin_loss if use_sigmoid else ops.upsampled_cross_entropy
        self.loss_weight, self._loss_name = loss_weight, loss_name

    def forward(self, cls_score: Tensor, label: Tensor, weight: Tensor | None = None, ignore_index: int = 255, **_):
        if weight is not None:
            raise ValueError(
                "WilsonUpsampledLoss: weights per pixel are not supported; set them to ignore_index instead"
            )
        return self.loss_weight * self.loss(cls_score, label, ignore_index=ignore_index)

    @property
    def loss_name(self) -> str:
        return self._loss_name


@MODELS.register_module()
class SmallLogitsHead(nn.Module):
    """A decode head whose `loss_by_feat` does not resize the logits before the loss.

    In mmsegmentation, derive from the head in use and take over `loss_by_feat`: it is the same there.

    Args:
        in_channels: of the features.
        num_classes: background included.
        loss_decode: configuration of the loss.
        ignore_index: mask value to skip.
    """

    def __init__(self, in_channels: int, num_classes: int, loss_decode: dict, ignore_index: int = 255) -> None:
        super().__init__()
        self.conv_seg = nn.Conv2d(in_channels, num_classes, 1)
        self.loss_decode = MODELS.build(loss_decode)
        self.ignore_index = ignore_index

    def forward(self, inputs: Tensor) -> Tensor:
        return self.conv_seg(inputs)

    def loss_by_feat(self, seg_logits: Tensor, seg_label: Tensor) -> dict[str, Tensor]:
        """Logits (B, C, H, W), mask (B, 1, H', W') as mmsegmentation stacks them."""
        label = seg_label.squeeze(1)
        with torch.no_grad():
            right = ops.upsampled_argmax(seg_logits, (label.shape[1], label.shape[2])) == label
        return {
            self.loss_decode.loss_name: self.loss_decode(seg_logits, label, ignore_index=self.ignore_index),
            "acc_seg": 100 * right[label != self.ignore_index].float().mean(),
        }

    def predict_by_feat(self, seg_logits: Tensor, size: tuple[int, int]) -> Tensor:
        return ops.upsampled_argmax(seg_logits, size)


def main(size: int = 256, batch: int = 4) -> tuple[dict[str, Tensor], dict[str, float]]:
    """One step of the head, then the comparison; returns the losses and what is saved."""
    torch.manual_seed(0)
    head = MODELS.build(
        {
            "type": "SmallLogitsHead",
            "in_channels": 32,
            "num_classes": 19,
            "loss_decode": {"type": "WilsonUpsampledLoss", "loss_weight": 0.4},
        }
    )
    features = torch.randn(batch, 32, size // 8, size // 8)
    label = torch.randint(0, 19, (batch, 1, size, size))
    label[:, :, :8] = 255
    losses = head.loss_by_feat(head(features), label)
    losses["loss_wilson"].backward()
    print(", ".join(f"{name} {value.item():.3f}" for name, value in losses.items()))

    logits = head(features).detach().requires_grad_()

    def usual() -> Tensor:
        up = F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
        loss = 0.4 * F.cross_entropy(up, label.squeeze(1), ignore_index=255)
        return torch.autograd.grad(loss, logits)[0]

    def ours() -> Tensor:
        return torch.autograd.grad(head.loss_decode(logits, label.squeeze(1)), logits)[0]

    torch.testing.assert_close(ours(), usual())
    return losses, compare(f"loss on {tuple(logits.shape)} to {size}", usual, ours)


if __name__ == "__main__":
    main()

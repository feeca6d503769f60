"""A custom loss for segmentation_models.pytorch: small logits, full-size mask.

smp's losses expect logits as large as the mask. With `UpsampledLoss` a Unet can stop at a quarter of the image's size,
and the loss reads the mask as it is: the full-size logits never exist. Run it with
`python -m examples.segmentation_models_loss`; it needs `pip install segmentation-models-pytorch`.
"""

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.compare import compare
from wilson import ops

CLASSES = 21


class UpsampledLoss(nn.Module):
    """Cross-entropy, or per-class binary cross-entropy, of small logits against a mask of the image's size.

    Args:
        mode: "multiclass" for softmax cross-entropy, "multilabel" for binary cross-entropy against the one-hot mask;
            smp's names.
        ignore_index: mask value to skip.
    """

    def __init__(self, mode: str = "multiclass", ignore_index: int = 255) -> None:
        super().__init__()
        if mode not in ("multiclass", "multilabel"):
            raise ValueError(f'UpsampledLoss: mode must be "multiclass" or "multilabel", got {mode!r}')
        self.loss = ops.upsampled_cross_entropy if mode == "multiclass" else ops.upsampled_soft_margin_loss
        self.ignore_index = ignore_index

    def forward(self, y_pred: Tensor, y_true: Tensor) -> Tensor:
        """Logits (B, C, H, W), mask (B, H', W')."""
        return self.loss(y_pred, y_true, ignore_index=self.ignore_index)


def build() -> nn.Module:
    """A Unet whose decoder stops at 1/4 of the image's size."""
    model = smp.Unet("resnet18", encoder_weights=None, classes=CLASSES, decoder_channels=(256, 128, 64, 32, 16))
    model.decoder.blocks = model.decoder.blocks[:3]
    model.segmentation_head = smp.base.SegmentationHead(64, CLASSES)
    return model


def main(size: int = 256, batch: int = 4, iterations: int = 5) -> tuple[list[float], dict[str, float]]:
    """Train a few steps, then compare the loss with the usual code; returns the losses and what is saved."""
    torch.manual_seed(0)
    model, loss_of = build(), UpsampledLoss()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    image = torch.randn(batch, 3, size, size)
    mask = (image[:, 0] > 0.5).long() + 2 * (image[:, 1] > 0.5).long()
    mask[:, :8] = 255
    losses = []
    for iteration in range(iterations):
        loss = loss_of(model(image), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"iteration {iteration}: loss {loss.item():.3f}")

    logits = model(image).detach().requires_grad_()

    def usual() -> Tensor:
        up = F.interpolate(logits, mask.shape[1:], mode="bilinear")
        return torch.autograd.grad(F.cross_entropy(up, mask, ignore_index=255), logits)[0]

    def ours() -> Tensor:
        return torch.autograd.grad(loss_of(logits, mask), logits)[0]

    torch.testing.assert_close(ours(), usual())
    return losses, compare(f"loss on {tuple(logits.shape)} to {size}", usual, ours)


if __name__ == "__main__":
    main()

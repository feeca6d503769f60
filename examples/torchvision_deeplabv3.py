"""wilson.ops inside torchvision's DeepLabV3, in a plain training loop.

Two drop-ins: the loss on logits at feature resolution (`upsampled_cross_entropy` instead of interpolating first), and
an image-level loss by `ngwp_focal_pool` for images of which only the classes are known. Run it with
`python -m examples.torchvision_deeplabv3`; it needs the train extra and no data.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.segmentation import DeepLabV3, deeplabv3_resnet50

from examples.compare import compare
from wilson import ops

CLASSES = 5  # background first


def forward(model: DeepLabV3, image: Tensor) -> Tensor:
    """Logits at feature resolution: what torchvision's own forward would upsample to the image's size."""
    return model.classifier(model.backbone(image)["out"])


def training_step(model: DeepLabV3, image: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
    """Dense masks where there are any, else image-level labels (B, CLASSES - 1)."""
    logits = forward(model, image)
    if mask is not None:
        # before: F.cross_entropy(F.interpolate(logits, mask.shape[1:], mode="bilinear"), mask, ignore_index=255)
        return ops.upsampled_cross_entropy(logits, mask)
    pooled = ops.ngwp_focal_pool(logits)[:, 1:]
    return F.binary_cross_entropy_with_logits(pooled, labels)


def synthetic_batch(batch: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Squares whose brightness tells their class, on noise."""
    image, mask = 0.1 * torch.randn(batch, 3, size, size), torch.zeros(batch, size, size, dtype=torch.long)
    for b in range(batch):
        c = int(torch.randint(1, CLASSES, ()))
        y, x = torch.randint(0, size // 2, (2,)).tolist()
        image[b, :, y : y + size // 2, x : x + size // 2] += c
        mask[b, y : y + size // 2, x : x + size // 2] = c
    labels = torch.stack([(mask == c).flatten(1).any(1) for c in range(1, CLASSES)], 1).float()
    return image, mask, labels


def main(iterations: int = 20, batch: int = 4, size: int = 64) -> list[float]:
    """Train on alternating dense and image-level batches; returns the losses."""
    torch.manual_seed(0)
    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    losses = []
    for iteration in range(iterations):
        image, mask, labels = synthetic_batch(batch, size)
        loss = training_step(model, image, mask if iteration % 2 == 0 else None, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"iteration {iteration}, {'masks' if iteration % 2 == 0 else 'labels'}: loss {loss.item():.3f}")
    model.eval()
    with torch.no_grad():
        classes = ops.upsampled_argmax(forward(model, image), (image.shape[2], image.shape[3]))
    print("predicted classes:", classes.unique().tolist())
    compare_losses(size=256)
    return losses


def compare_losses(size: int) -> dict[str, float]:
    """The loss at full size, before and after; returns what is saved."""
    image, mask, _ = synthetic_batch(4, size)
    logits = F.avg_pool2d(image, 8).mean(1, keepdim=True).repeat(1, CLASSES, 1, 1).requires_grad_()

    def usual() -> Tensor:
        up = F.interpolate(logits, mask.shape[1:], mode="bilinear")
        return torch.autograd.grad(F.cross_entropy(up, mask, ignore_index=255), logits)[0]

    def ours() -> Tensor:
        return torch.autograd.grad(ops.upsampled_cross_entropy(logits, mask), logits)[0]

    return compare(f"loss on {tuple(logits.shape)} to {size}", usual, ours)


if __name__ == "__main__":
    main()

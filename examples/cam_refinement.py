"""A weakly supervised pipeline: class activation maps, refined by `ops.pamr`, become labels to train on.

A classifier's activation maps are coarse. PAMR moves them to the edges of the image, `confident_labels` keeps the
pixels that exactly one class claims, and `balanced_cross_entropy` trains a segmentation head on those. Run it with
`python -m examples.cam_refinement`; it needs torch alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.compare import compare
from wilson import ops

CLASSES = 4  # background first
DILATIONS = (1, 2, 4, 8, 12)


def scene(batch: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images in 0..1 with one disk each, its mask, and its image-level labels."""
    image, mask = torch.rand(batch, 3, size, size) * 0.2, torch.zeros(batch, size, size, dtype=torch.long)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for b in range(batch):
        c = 1 + b % (CLASSES - 1)
        centre = torch.randint(size // 3, 2 * size // 3, (2,))
        disk = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < (size // 4) ** 2
        image[b, c - 1][disk] += 0.7
        mask[b][disk] = c
    labels = torch.stack([(mask == c).flatten(1).any(1) for c in range(1, CLASSES)], 1).float()
    return image, mask, labels


def activation_maps(image: Tensor, stride: int = 32) -> Tensor:
    """Stand-in for a classifier's maps (B, CLASSES, H, W): right about the colour, coarse about the place."""
    coarse = F.avg_pool2d(image, stride)
    scores = torch.cat([torch.full_like(coarse[:, :1], 0.35), coarse], 1)
    return F.interpolate(scores, image.shape[2:], mode="bilinear", align_corners=True).clamp(0, 1)


def usual_pamr(image: Tensor, mask: Tensor, iterations: int = 10) -> Tensor:
    """PAMR as it is usually written: all neighbours of all classes in one tensor (B, C, 40, H, W)."""

    def neighbours(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        found = []
        for d in DILATIONS:
            padded = F.pad(x, (d, d, d, d), mode="replicate")
            patches = F.unfold(padded, 3, dilation=d).view(batch, channels, 9, height, width)
            found.append(torch.cat([patches[:, :, :4], patches[:, :, 5:]], 2))
        return torch.cat(found, 2)

    around = neighbours(image)
    centre = image.unsqueeze(2)
    sigma = torch.cat([around, centre.expand(-1, -1, len(DILATIONS), -1, -1)], 2).std(2, keepdim=True)
    affinity = (-(around - centre).abs() / (1e-8 + 0.1 * sigma)).mean(1, keepdim=True).softmax(2)
    for _ in range(iterations):
        mask = (neighbours(mask) * affinity).sum(2)
    return mask


def main(size: int = 128, batch: int = 3) -> tuple[dict[str, float], dict[str, float]]:
    """Refine and train; returns how many percent of the labels are right, before and after, and what is saved."""
    torch.manual_seed(0)
    image, mask, labels = scene(batch, size)
    maps = activation_maps(image)
    refined = ops.pamr(image, maps, dilations=DILATIONS)
    accuracy = {}
    for name, scores in (("activation maps", maps), ("refined", refined)):
        pixels, counts = ops.confident_labels(scores, labels)
        claimed = pixels != 255
        accuracy[name] = 100 * (pixels == mask)[claimed].float().mean().item()
        print(f"{name}: {accuracy[name]:.1f} % of the {int(claimed.sum())} labelled pixels are right")

    head = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, CLASSES, 1))
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for iteration in range(20):
        loss = ops.balanced_cross_entropy(head(image), pixels, counts, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if iteration % 10 == 9:
            print(f"iteration {iteration}: loss {loss.item():.4f}")

    torch.testing.assert_close(refined, usual_pamr(image, maps), rtol=1e-4, atol=1e-5)
    saved = compare(
        f"PAMR of {tuple(maps.shape)}",
        lambda: usual_pamr(image, maps),
        lambda: ops.pamr(image, maps, dilations=DILATIONS),
    )
    return accuracy, saved


if __name__ == "__main__":
    main()

"""Trains a model of another library by cross-entropy, with nothing of wilson but its built-in images.

`python -m examples.bring_your_own.train_base unet runs/unet.pt 12` trains for 12 epochs and writes a state dict, as
people have it. It stands for your own training script.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask

from examples.bring_your_own.models import MODELS
from wilson.data.sources.synthetic import Synthetic

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(split: str, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of a split, uint8 (N, 3, H, W), and their masks (N, H, W)."""
    source = Synthetic(split, count)
    pairs = [(np.asarray(source.image(i)), np.asarray(source.mask(i))) for i in range(len(source.names))]
    pixels, masks = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
    return pixels.permute(0, 3, 1, 2), masks


def scores(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The logits of any of the models at the image's size."""
    out = model(image)
    logits = out if isinstance(out, torch.Tensor) else out["out"] if "out" in out else out["logits"]
    return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)


def main(name: str, out: str, epochs: int = 24, count: int | None = None, seed: int = 0) -> float:
    """Train; returns the last epoch's mean loss."""
    torch.manual_seed(seed)
    model = MODELS[name]().to(memory_format=torch.channels_last)
    transformer = name == "segformer"
    rate = 4e-3 if transformer else 0.1
    optimizer = (
        torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-2)
        if transformer
        else torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    )
    pixels, masks = images("base", count)
    augment = v2.Compose([v2.RandomResizedCrop(64, scale=(0.5, 1)), v2.RandomHorizontalFlip()])
    normalize = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    length = len(pixels) // 16
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * length, pct_start=0.1)
    mean = float("nan")
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for places in torch.randperm(len(pixels))[: length * 16].split(16):
            pairs = [augment(pixels[i], Mask(masks[i])) for i in places.tolist()]
            image = normalize(torch.stack([image for image, _ in pairs])).contiguous(memory_format=torch.channels_last)
            mask = torch.stack([mask for _, mask in pairs]).long()
            loss = F.cross_entropy(scores(model, image), mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        mean = total / length
        print(f"{name}, epoch {epoch + 1}: cross-entropy {mean:.3f}", flush=True)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), out)
    return mean


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))

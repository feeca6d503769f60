"""The logits of a large image from windows that slide over it, each no larger than what a model was trained on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wilson.models import SegmentationModel


class Window(NamedTuple):
    """A square window, and how far it moves from one place to the next, in pixels; 1 <= stride <= size."""

    size: int
    stride: int


def sliding(model: SegmentationModel, image: Tensor, window: Window) -> Tensor:
    """The mean of the upsampled logits of all windows that see a pixel, as in MMSegmentation's slide inference.

    The last window of a row or column ends at the border. A side that is shorter than the window is seen whole.

    Args:
        model: in eval mode.
        image: normalised, (B, 3, H, W); B windows are computed at once.
        window: its size and stride.

    Returns:
        Logits (B, C, H, W).
    """
    return torch.cat([_one(model, each, window, len(image)) for each in image.split(1)])


def places(length: int, window: Window) -> list[int]:
    """Where the windows along a side of `length` pixels start."""
    last = max(0, length - window.size)
    return [*range(0, last, window.stride), last]


def _one(model: SegmentationModel, image: Tensor, window: Window, batch: int) -> Tensor:
    height, width = image.shape[2:]
    size = min(window.size, height), min(window.size, width)
    parts = [
        (slice(top, top + size[0]), slice(left, left + size[1]))
        for top in places(height, window)
        for left in places(width, window)
    ]
    windows = torch.cat([image[:, :, rows, columns] for rows, columns in parts])
    logits = (model(seen).logits.float() for seen in windows.split(batch))
    total, count = image.new_zeros(model.classes, height, width, dtype=torch.float), image.new_zeros(height, width)
    for one, (rows, columns) in zip((each for some in logits for each in some.split(1)), parts, strict=True):
        total[:, rows, columns] += F.interpolate(one, size=size, mode="bilinear", align_corners=False)[0]
        count[rows, columns] += 1
    return (total / count)[None]

"""What a model sees in photographs before it learns from them: wrong weights or statistics show here at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from wilson import ops
from wilson.data.sources.base import ImageSource
from wilson.data.transforms import Normalization, WholeImage, unit_range
from wilson.models import SegmentationModel

SHOWN = 4  # classes, those of the most pixels


@torch.no_grad()
def first_look(
    model: SegmentationModel, photographs: ImageSource, normalization: Normalization, side: int, names: Sequence[str]
) -> str:
    """Say in a line what a model sees in some photographs.

    Args:
        model: in eval mode.
        photographs: few; all are looked at, whole, their short side resized to `side`.
        normalization: of the images.
        side: in pixels.
        names: of the model's classes by channel.
    """
    pixels, device = torch.zeros(len(names), dtype=torch.int64), next(model.parameters()).device
    whole = WholeImage(side)
    for index in range(len(photographs.names)):
        rgb, _ = whole(photographs.image(index), None)
        logits = model(normalization(unit_range(rgb[None].to(device)))).logits
        seen = ops.upsampled_argmax(logits, (rgb.shape[1], rgb.shape[2]))
        pixels += seen.cpu().flatten().bincount(minlength=len(names))
    most = [place for place in pixels.argsort(descending=True).tolist() if pixels[place]][:SHOWN]
    shares = ", ".join(f"{names[place]} {100 * pixels[place] / pixels.sum():.0f} %" for place in most)
    return (
        f"In {len(photographs.names)} of the photographs it now sees {shares} of the pixels. If that cannot be, its "
        "weights, mean or deviation are wrong."
    )

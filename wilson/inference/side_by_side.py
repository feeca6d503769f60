"""What several models say of one image, class by class, in the same channels and colours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wilson.inference.predict import Predictor
from wilson.pictures import palette


@dataclass(frozen=True)
class Seen:
    """What one model says of an image.

    Attributes:
        labels: place in the common list of classes of each pixel, uint8 (H, W).
        sure: probability of that class, float32 (H, W).
        shares: share of the pixels of each class of the common list, in percent.
    """

    labels: np.ndarray
    sure: np.ndarray
    shares: list[float]


def side_by_side(
    image: Image.Image, models: Mapping[str, Predictor]
) -> tuple[dict[str, palette.Colour], dict[str, Seen]]:
    """Ask several models about an image.

    Args:
        image: RGB.
        models: by their titles.

    Returns:
        The colours of all their classes by name, a class that several know once; and what each model says.
    """
    names = list(dict.fromkeys(name for model in models.values() for name in model.classes))
    found = {}
    for title, model in models.items():
        probabilities = model.probabilities(image)
        labels = np.array([names.index(name) for name in model.classes], np.uint8)[probabilities.argmax(0)]
        shares = 100 * np.bincount(labels.ravel(), minlength=len(names)) / labels.size
        found[title] = Seen(labels, probabilities.max(0), shares.round(1).tolist())
    return dict(zip(names, palette.distinct(len(names)), strict=True)), found

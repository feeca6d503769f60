"""Regions of an image from its colours alone: superpixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, fromarray

from wilson.atomic import replacing
from wilson.data.sources.base import ImageSource

from .maps import missing


def superpixels(image: Image, count: int, compactness: float) -> NDArray[np.uint16]:
    """SLIC's superpixels (Achanta et al., TPAMI 2012) by scikit-image: ids (H, W) from 1 on.

    Args:
        image: upright, RGB.
        count: about how many, 1 to 65535.
        compactness: of near places against like colours, above 0.
    """
    from skimage.segmentation import slic

    pixels = np.asarray(image)
    return slic(pixels, n_segments=count, compactness=compactness, start_label=1).astype(np.uint16)


def fill(out: Path, source: ImageSource, count: int, compactness: float) -> None:
    """Write FOLDER/NAME.png, of 16 bits, for each image; files that are there are kept, so that the command goes on.

    Images that cannot be read get no file; how many is printed at the end.
    """
    for file, image in missing(out, ".png", source, what="regions"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            fromarray(superpixels(image, count, compactness)).save(temporary, "png")

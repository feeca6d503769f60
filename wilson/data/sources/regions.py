"""Regions beside the images of a data set: superpixels, or the masks of a segment-anything model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from wilson.data.files import check_beside
from wilson.data.images import read_ids
from wilson.data.scan import mismatch
from wilson.errors import UserError


class Regions:
    """Ids of regions: FOLDER/NAME.png for each image, of 8 or 16 bits and the image's size; 0 is no region.

    Args:
        folder: of the files.
        names: of the images.

    Raises:
        UserError: an image has no file, or two images have the same name.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        remedy = "give a folder with a NAME.png for each image of the step (--data.regions; wilson regions makes one)"
        check_beside(names, self._file, "file of regions", remedy)

    def read(self, name: str, size: tuple[int, int], file: Path | None = None) -> Image.Image:
        """Read the ids, mode I, of an image.

        Args:
            name: of the image.
            size: its width and height when upright.
            file: of the image, with which the regions are turned upright; None if it is drawn.

        Raises:
            UserError: the file is broken, does not fit, or leaves pixels without a region.
        """
        regions = read_ids(self._file(name), file)
        if wrong := mismatch(name, size, regions.size):
            raise UserError(wrong.replace("its mask", f"{self._file(name)}"))
        if none := int((np.asarray(regions) == 0).sum()):
            raise UserError(
                f"{self._file(name)}: {none} of {size[0] * size[1]} pixels are of no region (0); regions must cover "
                "the image: give the rest ids of their own, or make superpixels with wilson regions"
            )
        return regions

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.png"

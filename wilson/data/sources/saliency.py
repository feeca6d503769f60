"""Saliency maps beside the images of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image

from wilson.data.files import check_beside
from wilson.data.images import read_mask
from wilson.data.scan import mismatch
from wilson.errors import UserError


class Saliency:
    """Grey saliency maps: FOLDER/NAME.png for each image, of the image's size, white where it is salient.

    Args:
        folder: of the maps.
        names: of the images.

    Raises:
        UserError: an image has no map, or two images have the same name.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        remedy = "give a folder with a grey NAME.png for each training image (--data.saliency)"
        check_beside(names, self._file, "saliency map", remedy)

    def read(self, name: str, size: tuple[int, int], file: Path | None = None) -> Image:
        """Read the map, mode L, of an image.

        Args:
            name: of the image.
            size: its width and height when upright.
            file: of the image, with which the map is turned upright; None if it is drawn.

        Raises:
            UserError: the map is broken or does not fit.
        """
        image = read_mask(self._file(name), file)
        if image.mode != "L":
            raise UserError(f"{self._file(name)}: expected a grey image (mode L), got mode {image.mode}; convert it")
        if wrong := mismatch(name, size, image.size):
            raise UserError(wrong.replace("its mask", "its saliency map"))
        return image

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.png"

"""Maps of classes beside the images of a data set: where a model from outside, or a person, sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wilson.atomic import replacing
from wilson.data.files import check_beside
from wilson.data.names import find_all
from wilson.errors import UserError, first_line


class Maps(NamedTuple):
    """What a file of maps holds."""

    maps: NDArray[np.uint8]  # (N, h, w) of the whole upright image, 255 where the class is certain
    classes: list[str]  # N names
    source: str  # what made them, as text; empty if the file does not say


class PriorMaps:
    """FOLDER/NAME.npz for each image, with maps of at least the classes asked for, at any resolution.

    Args:
        folder: of the files.
        names: of the images.
        classes: names of the classes that :meth:`read` returns, in its order.

    Raises:
        UserError: an image has no file, or two images have the same name.
    """

    def __init__(self, folder: Path, names: Sequence[str], classes: Sequence[str]) -> None:
        self.folder, self.classes = folder, list(classes)
        remedy = "give a folder with a NAME.npz for each image of the step (--data.prior; wilson prior head makes one)"
        check_beside(names, self._file, "file of maps", remedy)

    def read(self, name: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Read the maps, uint8 (N, h, w), of an image.

        Args:
            name: of the image.
            size: its width and height when upright.

        Raises:
            UserError: the file is broken, lacks a class, or its maps have another shape than the image.
        """
        file = self._file(name)
        maps, classes, _ = read_maps(file)
        found, missing = find_all(self.classes, classes)
        if missing:
            others = ", ".join(classes[:6]) + (" and more" if len(classes) > 6 else "")
            raise UserError(
                f"{file}: holds no map of {missing[0]}, but of {others or 'nothing'}; make the "
                "folder anew, with maps of each class of the step"
            )
        (width, height), (rows, columns) = size, maps.shape[1:]
        if abs(columns * height - rows * width) > max(size):  # more than one pixel of the map off
            raise UserError(
                f"{file}: maps of {columns}x{rows} pixels have not the shape of the image, {width}x{height}; make them "
                "of the whole image, upright"
            )
        return maps[found]

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


def read_maps(file: Path) -> Maps:
    """Read a file of maps; UserError if it is broken or no such file."""
    try:
        with np.load(file, allow_pickle=False) as values:
            maps, classes = values["maps"], [str(name) for name in values["classes"]]
            source = str(values["source"]) if "source" in values else ""
        if maps.dtype != np.uint8 or maps.ndim != 3 or 0 in maps.shape[1:] or len(maps) != len(classes):
            raise ValueError(
                f"expected maps uint8 (N, h, w) and N classes, got {maps.dtype} {maps.shape} and {len(classes)}"
            )
    except Exception as error:  # numpy has half a dozen kinds for a broken file
        raise UserError(f"{file}: is no file of maps: {first_line(error)}; make it anew or take it away") from error
    return Maps(maps, classes, source)


def write_maps(file: Path, maps: Maps) -> None:
    """Write a file of maps, whole or not at all; its folder is created."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, maps=maps.maps, classes=np.array(maps.classes), source=np.array(maps.source))

"""Find and read the files of data sets, with errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from wilson.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png")
# What Pillow raises depends on the format and on where the file is broken.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def read_image(path: Path) -> Image.Image:
    """Read an image as RGB in its stored orientation, which its mask shares; UserError if it cannot be read."""
    return rgb(_open(path), str(path))


def upright(path: Path) -> Image.Image:
    """Read an image without a mask as RGB, turned as its EXIF data says; UserError if it cannot be read."""
    return rgb(ImageOps.exif_transpose(_open(path)), str(path))


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image: 1 is upright, above 4 is turned by a quarter."""
    return image.getexif().get(Base.Orientation, 1)


def rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """Convert an image to RGB; UserError if the range of its values is unknown."""
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit values at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(f"{name}: expected values of 8 or 16 bits, got mode {image.mode}; store it with 8 bits")
    return image.convert("RGB")


def read_mask(path: Path) -> Image.Image:
    """Read a mask of 8-bit ids, mode L or P; UserError if it cannot be read or has another mode."""
    mask = _open(path)
    if mask.mode not in ("L", "P"):
        raise UserError(
            f"{path}: expected a mask of one channel of 8-bit class ids (PNG, palette or grey), got mode {mask.mode}; "
            "convert the mask's colours to class ids"
        )
    return mask


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 text file; UserError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def inside(text: str, where: str) -> PurePosixPath:
    """Turn a path that a list names into one relative to the data set's folder; UserError if it leads out of it."""
    # Judged by its text alone, because a folder of the data set may be a link to another disk.
    path = PurePosixPath(os.path.normpath(text.lstrip("/")))
    if path.parts[:1] in ((), ("..",)):
        raise UserError(f"{where}: leads out of the data set's folder; paths and names must stay inside")
    return path


def find_image(folders: Iterable[Path], name: PurePosixPath) -> Path | None:
    """The first file of this name, with a usual extension or with its own; None if there is none."""
    for folder in folders:
        for path in (*(folder / f"{name}{extension}" for extension in EXTENSIONS), folder / name):
            if path.is_file():
                return path
    return None


def images_below(folder: Path) -> list[Path]:
    """All image files in a folder and its subfolders, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            file.load()
            return file.copy()
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path}: cannot be read: {reason}; replace the file or take it out of the list") from error

"""Open images and masks: the one guarded way, for training, checks and prediction alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import TiffImageFile

from wilson.data.files import FORMATS
from wilson.errors import UserError, first_line

Turn = Image.Transpose
# What makes an image upright, by its EXIF orientation; anything else there says nothing.
TURNS = {
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_90,
}
QUARTERS = frozenset({5, 6, 7, 8})  # these swap width and height


class Stored(NamedTuple):
    """How a file stores an image: its size (width, height), and the EXIF orientation, 1 where there is none."""

    size: tuple[int, int]
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """The size (width, height) of the image when upright."""
        return self.size[::-1] if self.orientation in QUARTERS else self.size


def read_image(path: Path) -> Image.Image:
    """Read an image (of several frames, the first) as RGB, turned upright as its EXIF data says.

    Raises:
        UserError: the file is missing, damaged, no image, or of values whose range is unknown.
    """
    with _guarded(path):
        file, stored = _load(path)
        _remember(path, stored)
        image, turn = rgb(file, str(path)), TURNS.get(stored.orientation)
        # Pillow has turned a TIFF file already
        return image if turn is None or file.format == "TIFF" else image.transpose(turn)


def read_mask(path: Path, image: Path | None = None) -> Image.Image:
    """Read a mask of 8-bit ids.

    Args:
        path: the mask.
        image: the image that it belongs to. A mask of this image's stored size is turned upright with it. None leaves
            the mask as it is stored.

    Returns:
        The mask, mode L or P.

    Raises:
        UserError: the file cannot be read, or its mode is another one.
    """
    with _guarded(path):
        mask, _ = _load(path)
        if mask.mode == "1":
            raise UserError(f"{path}: is a mask of one bit; store it with 8 bits, 0 for background and 1 for the class")
        if mask.mode not in ("L", "P"):
            raise UserError(
                f"{path}: expected a mask of one channel of 8-bit class ids (PNG, palette or grey), got mode "
                f"{mask.mode}; convert the mask's colours to class ids"
            )
        return mask if image is None else turned(mask, how_stored(image))


def read_ids(path: Path, image: Path | None = None) -> Image.Image:
    """Read ids of 8 or 16 bits, mode I; arguments and errors as for :func:`read_mask`."""
    with _guarded(path):
        ids, _ = _load(path)
        if ids.mode not in ("L", "P", "I") and not ids.mode.startswith("I;16"):
            raise UserError(f"{path}: expected ids of one channel of 8 or 16 bits, got mode {ids.mode}; convert it")
        ids = Image.fromarray(np.asarray(ids).astype(np.int32))
        return ids if image is None else turned(ids, how_stored(image))


def turned(mask: Image.Image, image: Stored) -> Image.Image:
    """Turn a mask upright with its image if it has the image's stored size; else it is upright, or does not fit."""
    turn = TURNS.get(image.orientation)
    return mask if turn is None or mask.size != image.size else mask.transpose(turn)


def how_stored(path: Path) -> Stored:
    """How an image is stored; without size and orientation if the file cannot be read, which reading it will report."""
    if _last is not None and _last[0] == _key(path):
        return _last[1]
    try:
        return header(path)
    except UserError:
        return Stored((0, 0), 1)


def header(path: Path) -> Stored:
    """Read how an image is stored, without its pixels where the format allows; UserError if the file is no image."""
    with _guarded(path), _open(path) as file:
        return _stored(file)


def rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """Convert an image to RGB, as a viewer shows it on white; UserError if it is damaged or has no known range."""
    with _guarded(name):
        image.load()
        # Pillow would clip 16-bit values at 255. It reads those of PGM and, in older versions, of PNG as mode I.
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
            return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise UserError(f"{name}: expected values of 8 or 16 bits, got mode {image.mode}; store it with 8 bits")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == "RGB" else image.convert("RGB")


# The image is read just before its mask, and to ask a PNG file for its EXIF data is to decode it.
_last: tuple[tuple[Path, int, int], Stored] | None = None


def _remember(path: Path, stored: Stored) -> None:
    global _last
    _last = (_key(path), stored)


def _key(path: Path) -> tuple[Path, int, int]:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return path, 0, 0
    return path, status.st_mtime_ns, status.st_size


def _open(path: Path) -> Image.Image:
    return Image.open(path, formats=list(FORMATS))


def _load(path: Path) -> tuple[Image.Image, Stored]:
    with _open(path) as file:
        stored = _stored(file)
        file.load()
        return file, stored


def _stored(file: Image.Image) -> Stored:
    # Of a TIFF file with such a tag Pillow gives the upright size
    tags = file.tag_v2 if isinstance(file, TiffImageFile) else {}
    size = file.size[::-1] if tags.get(Base.Orientation) in QUARTERS else file.size
    return Stored(size, _orientation(file))


def _orientation(file: Image.Image) -> int:
    try:
        value = file.getexif().get(Base.Orientation, 1)
    except Exception:  # what Pillow raises depends on how the block is malformed; the pixels do not depend on it
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


@contextmanager
def _guarded(name: Path | str) -> Iterator[None]:
    """Turn whatever Pillow raises, which depends on format and damage, into a UserError; its warnings are not shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UserError(f"{name}: cannot be read: no image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise UserError(f"{name}: cannot be read: {reason}; replace the file or take it out of the list") from error

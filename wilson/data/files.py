"""Reading image and mask files, with errors that name them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from wilson.errors import UserError


def read_image(path: Path) -> Image.Image:
    """An image file as RGB; UserError if it cannot be read."""
    return _open(path).convert("RGB")


def read_mask(path: Path) -> Image.Image:
    """A mask file of 8-bit ids, mode L or P; UserError if it cannot be read or is something else."""
    mask = _open(path)
    if mask.mode not in ("L", "P"):
        raise UserError(
            f"{path}: expected a mask of one channel of 8-bit class ids (PNG, palette or grey), got mode {mask.mode}; "
            "convert the mask's colours to class ids"
        )
    return mask


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as file:
            file.load()
            return file.copy()
    # What Pillow raises depends on the format and on where the file is broken.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path}: cannot be read: {reason}; replace the file or take it out of the list") from error

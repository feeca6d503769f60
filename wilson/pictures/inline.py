"""Pictures inside a page, which then refers to no other file."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

TYPES = {".jpg": "image/jpeg", ".png": "image/png"}


def url(picture: Path | np.ndarray) -> str:
    """A picture as the address of an image of HTML.

    Args:
        picture: a .jpg or .png file; or uint8 (H, W), which is kept exactly, or (H, W, 3), which is compressed.
    """
    if isinstance(picture, Path):
        kind, data = TYPES[picture.suffix], picture.read_bytes()
    else:
        file, extension = io.BytesIO(), ".png" if picture.ndim == 2 else ".jpg"
        Image.fromarray(picture).save(file, "PNG" if extension == ".png" else "JPEG", quality=90)
        kind, data = TYPES[extension], file.getvalue()
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"

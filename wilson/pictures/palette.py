"""Colours of classes: Pascal VOC's colour map for mask files, well-separated colours for pictures."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]

# Chosen by farthest-point search over CIELAB distances as seen with normal, protanopic, deuteranopic and tritanopic
# vision (the smallest counts): over 25 between any two of the first eight and the background, over 11 among all.
_BACKGROUND: Colour = (58, 62, 70)
_DISTINCT: tuple[Colour, ...] = (
    (255, 221, 0),
    (68, 238, 238),
    (17, 68, 238),
    (187, 238, 136),
    (119, 51, 153),
    (102, 136, 85),
    (136, 170, 255),
    (170, 136, 17),
    (204, 85, 153),
    (119, 68, 0),
    (238, 153, 153),
    (136, 102, 238),
    (85, 187, 221),
    (255, 34, 85),
    (187, 204, 68),
    (153, 102, 187),
    (136, 51, 119),
    (136, 0, 187),
    (0, 102, 51),
    (119, 204, 119),
)


def palette(n: int) -> list[Colour]:
    """The Pascal VOC colour map of the mask ids 0..n-1.

    The bits of an id, lowest first, go in turn to red, green and blue, and fill each channel from its highest bit down.

    Args:
        n: number of ids, 0 to 256.

    Returns:
        n colours (red, green, blue), 0 to 255.

    Raises:
        ValueError: n is outside 0..256.
    """
    if not 0 <= n <= 256:
        raise ValueError(f"palette: n must be in 0..256 (mask ids have 8 bits), got {n}")
    colours = []
    for index in range(n):
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        colours.append((channels[0], channels[1], channels[2]))
    return colours


def distinct(n: int) -> list[Colour]:
    """Colours of the output channels 0..n-1 in pictures: a dark grey background, then colours easy to tell apart.

    The first 20 classes have colours chosen for colour-blind readers. Each further one has the colour that is farthest
    from all before it, in CIELAB. A channel's colour does not depend on n, so all steps and runs of one task share
    their colours.

    Args:
        n: number of channels, background included, 0 to 256.

    Returns:
        n colours (red, green, blue), 0 to 255.

    Raises:
        ValueError: n is outside 0..256.
    """
    if not 0 <= n <= 256:
        raise ValueError(f"distinct: n must be in 0..256 (mask ids have 8 bits), got {n}")
    return list(_separate()[:n])


@cache
def _separate() -> tuple[Colour, ...]:
    """256 colours: the chosen ones, then by farthest-point search on a grid; white is kept for unlabelled pixels."""
    levels = np.arange(0, 256, 17)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    places = _lab(grid)
    chosen = [_BACKGROUND, *_DISTINCT]
    nearest = np.linalg.norm(places[:, None] - _lab(np.array([*chosen, (255, 255, 255)])), axis=2).min(1)
    while len(chosen) < 256:
        best = int(nearest.argmax())
        red, green, blue = grid[best].tolist()
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(places - places[best], axis=1))
    return tuple(chosen)


def _lab(colours: np.ndarray) -> np.ndarray:
    """CIELAB of sRGB colours (N, 3) in 0..255, for white of D65."""
    values = colours / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = linear @ to_xyz.T / (0.9505, 1.0, 1.089)
    cube = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    x, y, z = cube.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def apply(mask: Image.Image | np.ndarray, colours: Sequence[Colour] | None = None) -> Image.Image:
    """Turn a mask into a palette image, the format of VOC's own masks.

    Args:
        mask: ids (H, W), 0 to 255. A PIL image of mode L or P, or an array of any integer dtype.
        colours: colour of each id, at most 256; None for the VOC colour map. Ids beyond them are white.

    Returns:
        An image of mode P whose pixel values are the ids.

    Raises:
        ValueError: the mask is not two-dimensional or holds ids outside 0..255.
        TypeError: the mask does not hold integers.
    """
    ids = np.asarray(mask)
    if ids.ndim != 2:
        raise ValueError(f"apply: mask must be (H, W), got shape {ids.shape}; pass class ids, not colours or scores")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"apply: mask must hold integer class ids, got {ids.dtype}")
    if ids.size and not (ids.min() >= 0 and ids.max() <= 255):
        raise ValueError(f"apply: mask ids must be in 0..255, got {ids.min()}..{ids.max()}")
    table = np.full((256, 3), 255, dtype=np.uint8)
    chosen = palette(256) if colours is None else list(colours)
    table[: len(chosen)] = np.array(chosen, dtype=np.uint8).reshape(-1, 3)
    image = Image.fromarray(np.ascontiguousarray(ids, dtype=np.uint8))
    image.putpalette(table.tobytes())
    return image

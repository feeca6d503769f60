"""A data set drawn on the fly: textured shapes on smooth backgrounds. Classes differ in their texture alone.

Training flips images; no class becomes another when flipped.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wilson.config.masks import BACKGROUND
from wilson.data.sources.base import ImageSource
from wilson.errors import UserError

OLD_CLASSES = ("vertical stripes", "horizontal stripes", "diagonal stripes", "checkers", "rings")
NEW_CLASSES = ("zigzag", "dots", "mosaic")
OLD = np.arange(1, 1 + len(OLD_CLASSES))
NEW = np.arange(1 + len(OLD_CLASSES), 1 + len(OLD_CLASSES) + len(NEW_CLASSES))

SPLITS = {"base": 1200, "step": 900, "train": 2100, "val": 300}  # number of images by default
UNIT = 64  # lengths below are in 64ths of an image's side
SMALLEST = 32  # in smaller images the shortest period of a texture, 4.5 units, would be about 2 pixels or less
KEPT_BYTES = 1 << 29

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]


class Synthetic(ImageSource):
    """One split of the built-in data set.

    There are five old classes, then three new ones. An image of "base" has 1 to 3 old classes. An image of "step" has 1
    or 2 new classes, and in 60 % of the images 1 or 2 old ones with them. "train" has four images of the first kind for
    every three of the second. An image of "val" has any 1 to 3 classes. Shapes may hide one another; the mask tells
    which classes an image holds.

    Image `index` derives from (seed, split, index) alone. An image is drawn on first use and then kept, up to 512 MiB
    of images.

    Args:
        split: "base", "step", "train" or "val".
        images: number of images; None for 1200, 900, 2100 or 300.
        size: height and width in pixels, at least 32.
        seed: at least 0.

    Raises:
        UserError: an argument is out of range.
    """

    classes = ("background", *OLD_CLASSES, *NEW_CLASSES)

    def __init__(self, split: str, images: int | None = None, size: int = 64, seed: int = 0) -> None:
        if split not in SPLITS:
            raise UserError(f"synthetic split: expected {', '.join(SPLITS)}, got '{split}'")
        images = SPLITS[split] if images is None else images
        for name, value, least in (("images", images, 1), ("size", size, SMALLEST), ("seed", seed, 0)):
            if value < least:
                raise UserError(f"synthetic {name}: expected at least {least}, got {value}")
        self.split, self.size, self.seed = split, size, seed
        self.names = [f"{split}_{index:05d}" for index in range(images)]
        self._kept: dict[int, Scene] = {}

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._scene(index).image)

    def mask(self, index: int) -> Image.Image:
        return Image.fromarray(self._scene(index).mask)

    def has_mask(self, index: int) -> bool:
        return True

    def class_ids(self, index: int) -> frozenset[int]:
        return self._class_sets[index]

    @cached_property
    def _class_sets(self) -> list[frozenset[int]]:
        masks = (self._scene(index).mask for index in range(len(self.names)))
        return [frozenset(np.unique(mask).tolist()) - {BACKGROUND} for mask in masks]

    def _scene(self, index: int) -> Scene:
        if index not in self._kept:
            rng = np.random.default_rng((self.seed, list(SPLITS).index(self.split), index))
            scene = draw_scene(draw_classes(self.split, index, rng), self.size, rng)
            if (len(self._kept) + 1) * (scene.image.nbytes + scene.mask.nbytes) > KEPT_BYTES:
                return scene
            self._kept[index] = scene
        return self._kept[index]


class Scene(NamedTuple):
    """An image and its mask."""

    image: Bytes  # (size, size, 3)
    mask: Bytes  # (size, size)


def draw_classes(split: str, index: int, rng: np.random.Generator) -> list[int]:
    """Draw the classes of an image at random, the rearmost first."""
    if split == "train":
        split = "base" if index % 7 < 4 else "step"
    if split == "base":
        ids = _some(OLD, 3, rng)
    elif split == "step":
        ids = _some(NEW, 2, rng) + (_some(OLD, 2, rng) if rng.random() < 0.6 else [])
    else:
        ids = _some(np.concatenate([OLD, NEW]), 3, rng)
    return rng.permutation(ids).tolist()


def draw_scene(ids: list[int], size: int, rng: np.random.Generator) -> Scene:
    """Draw one shape for each class, later shapes over earlier ones."""
    y, x = np.mgrid[:size, :size] * (UNIT / size)
    image = rng.uniform(40, 215, 3) + _smooth_noise(size, rng)
    mask = np.zeros((size, size), np.uint8)
    for class_id in ids:
        shape = draw_shape(x, y, rng)
        texture = draw_texture(Synthetic.classes[class_id], x, y, rng)
        light, dark = _two_colours(rng)
        image[shape] = np.where(texture[shape, None], light, dark)
        mask[shape] = class_id
    image += rng.normal(0, 6, image.shape)
    return Scene(image.clip(0, 255).astype(np.uint8), mask)


def draw_shape(x: Floats, y: Floats, rng: np.random.Generator) -> Bools:
    """Draw a disc, square, ellipse or triangle at a random place and angle, as a mask."""
    centre, radius = rng.uniform(14, UNIT - 14, 2), rng.uniform(10, 18)
    kind, angle = rng.integers(4), rng.uniform(0, 2 * np.pi)
    u = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    v = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
    if kind == 0:
        return np.hypot(u, v) < radius
    if kind == 1:
        return np.maximum(abs(u), abs(v)) < 0.9 * radius
    if kind == 2:
        return np.hypot(u / 1.4, v * 1.2) < radius
    return (v < 0.8 * radius) & (v > 2 * abs(u) - 1.1 * radius)


def draw_texture(name: str, x: Floats, y: Floats, rng: np.random.Generator) -> Bools:
    """Draw a class's texture with a random period and phase: True where a pixel has the first colour."""
    wave = 2 * np.pi / rng.uniform(4.5, 7)
    phase = rng.uniform(0, 2 * np.pi, 2)
    if name == "vertical stripes":
        return np.sin(wave * x + phase[0]) > 0
    if name == "horizontal stripes":
        return np.sin(wave * y + phase[0]) > 0
    if name == "diagonal stripes":  # rising or falling, since training flips images
        return np.sin(wave * (x + rng.choice([-1, 1]) * y) / np.sqrt(2) + phase[0]) > 0
    if name == "zigzag":
        teeth = abs((x + rng.uniform(0, 12)) % 12 - 6)
        return np.sin(wave * (y + teeth) / np.sqrt(2) + phase[0]) > 0
    if name == "checkers":
        return np.sin(wave * x + phase[0]) * np.sin(wave * y + phase[1]) > 0
    if name == "rings":
        centre = rng.uniform(0, UNIT, 2)
        return np.sin(wave * np.hypot(x - centre[0], y - centre[1])) > 0
    if name == "dots":
        return np.sin(wave * x / 1.5 + phase[0]) * np.sin(wave * y / 1.5 + phase[1]) > 0.4
    cells = rng.random((UNIT // 3 + 1, UNIT // 3 + 1)) > 0.5  # mosaic
    return cells[y.astype(int) // 3, x.astype(int) // 3]


def _some(ids: NDArray[np.int64], most: int, rng: np.random.Generator) -> list[int]:
    return rng.choice(ids, rng.integers(1, most + 1), replace=False).tolist()


def _two_colours(rng: np.random.Generator) -> Floats:
    while True:
        pair = rng.uniform(0, 255, (2, 3))
        if abs(pair[0] - pair[1]).sum() >= 150:
            return pair


def _smooth_noise(size: int, rng: np.random.Generator) -> Floats:
    # Bilinear interpolation of 5 x 5 random values, corners aligned: (size, 5) weights from either side.
    place = np.linspace(0, 4, size)[:, None]
    weights = np.maximum(0, 1 - abs(place - np.arange(5)))
    return np.moveaxis(weights @ rng.normal(0, 25, (3, 5, 5)) @ weights.T, 0, -1)

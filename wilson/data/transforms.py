"""Transforms from PIL images and masks to tensors, and the normalisation of images."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from wilson.errors import UserError

SCALE = (0.5, 2.0)  # area of a training crop, relative to the image's own
LONGEST = 6  # a whole image, once resized, has at most the pixels of this many crops: one of 6:1 or less is not touched
NEEDED = 16  # a crop of the centre is cut from the middle of a longer image than 16:1; the rest does not reach it
PER_MAP_PIXEL = 4  # pixels of a crop per pixel of its prior maps: the finest stride of this project's networks
BILINEAR, NEAREST = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.NEAREST

# Masks are resized as PIL images: torchvision's nearest resizing of tensors is up to half a pixel off its bilinear
# resizing of images, Pillow's is not.


class Transform(Protocol):
    """A function from an image (RGB) and a mask (ids, or None) to uint8 (3, H, W) and uint8 (H, W), or None."""

    def __call__(self, image: Image, mask: Image | None) -> tuple[Tensor, Tensor | None]: ...


class Normalization(NamedTuple):
    """The normalisation of a network's images: mean and standard deviation per channel, for RGB in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, rgb: Tensor) -> Tensor:
        """Compute (rgb - mean) / std for RGB in 0..1, floating (..., 3, H, W)."""
        return F.normalize(rgb, list(self.mean), list(self.std))


def unit_range(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in 0..1."""
    return F.to_dtype(pixels, torch.float32, scale=True)


class TrainingCrop:
    """Random resized crop and random horizontal flip.

    PyTorch's RandomResizedCrop draws an area of 0.5 to 2 times the image's and an aspect ratio of 3/4 to 4/3. It tries
    up to ten times to fit the box into the image, then takes the largest centred box of an allowed ratio. Nothing is
    padded. Random numbers come from torch's global CPU generator.

    Args:
        crop: height and width of the result in pixels, at least 1.

    Raises:
        UserError: `crop` is under 1.
    """

    def __init__(self, crop: int) -> None:
        self.size = square(crop)

    def __call__(self, image: Image, mask: Image | None) -> tuple[Tensor, Tensor | None]:
        box, flip = self._draw(image)

        def cut(picture: Image, interpolation: v2.InterpolationMode) -> Image:
            picture = F.resized_crop(picture, **box, size=self.size, interpolation=interpolation)
            return F.horizontal_flip(picture) if flip else picture

        return tensors(cut(image, BILINEAR), None if mask is None else cut(mask, NEAREST))

    def maps(self, image: Image, maps: NDArray[np.uint8]) -> Tensor:
        """Cut maps of the whole image as the same random numbers cut the image.

        Args:
            image: of the maps.
            maps: uint8 (N, h, w), of any size.

        Returns:
            uint8 (N, h', w'), resized bilinearly to a quarter of the crop's sides, rounded up.
        """
        box, flip = self._draw(image)
        height, width = maps.shape[1:]
        across, down = width / image.width, height / image.height
        where = (
            box["left"] * across,
            box["top"] * down,
            min((box["left"] + box["width"]) * across, width),  # a rounding error would lead out of the map
            min((box["top"] + box["height"]) * down, height),
        )
        side = -(-self.size[0] // PER_MAP_PIXEL)
        cut = [Pillow.fromarray(values).resize((side, side), Pillow.Resampling.BILINEAR, where) for values in maps]
        found = torch.from_numpy(np.stack([np.asarray(picture) for picture in cut]))
        return found.flip(2) if flip else found

    def _draw(self, image: Image) -> tuple[dict[str, int], bool]:
        """Where to cut, and whether to flip, from the next random numbers."""
        box = v2.RandomResizedCrop(self.size, scale=SCALE).make_params([image])
        return box, torch.rand(()).item() < 0.5


class CentreCrop:
    """Resize the short side to `crop`, then crop the centre.

    Args:
        crop: height and width of the result in pixels, at least 1.

    Raises:
        UserError: `crop` is under 1.
    """

    def __init__(self, crop: int) -> None:
        self.size = square(crop)

    def __call__(self, image: Image, mask: Image | None) -> tuple[Tensor, Tensor | None]:
        def cut(picture: Image, interpolation: v2.InterpolationMode) -> Image:
            most = NEEDED * min(picture.size)
            if max(picture.size) > most:
                picture = F.center_crop(picture, [min(picture.height, most), min(picture.width, most)])
            return F.center_crop(F.resize(picture, self.size[:1], interpolation=interpolation), self.size)

        return tensors(cut(image, BILINEAR), None if mask is None else cut(mask, NEAREST))


class WholeImage:
    """Resize the short side of the image to `short_side` pixels and keep the mask as it is.

    An image longer than 6:1 is resized to the area of one of 6:1, so that memory does not grow with its length.

    Args:
        short_side: in pixels, at least 1.

    Raises:
        UserError: `short_side` is under 1.
    """

    def __init__(self, short_side: int) -> None:
        self.size = square(short_side)

    def __call__(self, image: Image, mask: Image | None) -> tuple[Tensor, Tensor | None]:
        return tensors(F.resize(image, self._size(image), interpolation=BILINEAR), mask)

    def _size(self, image: Image) -> list[int]:
        """Height and width that the image is resized to; the short side alone where the limit does not matter."""
        short, long = sorted(image.size)
        if long <= LONGEST * short:
            return self.size[:1]
        scale = self.size[0] * math.sqrt(LONGEST / (short * long))
        return [max(1, round(side * scale)) for side in (image.height, image.width)]


def square(crop: int) -> list[int]:
    """Height and width of a square crop; UserError if it is under 1."""
    if crop < 1:
        raise UserError(f"crop: expected at least 1 pixel, got {crop}")
    return [crop, crop]


def tensors(image: Image, mask: Image | None) -> tuple[Tensor, Tensor | None]:
    """Convert image and mask to uint8 (3, H, W) and uint8 (H, W)."""
    return F.pil_to_tensor(image), None if mask is None else F.pil_to_tensor(mask)[0]

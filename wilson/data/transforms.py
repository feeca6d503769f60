"""From PIL images and masks to tensors of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from wilson.errors import UserError

SCALE = (0.5, 2.0)  # area of a training crop, relative to the image's own
BILINEAR, NEAREST = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.NEAREST

# Masks stay PIL images until they have been resized: torchvision's nearest resizing of tensors lies up to half a pixel
# off its bilinear resizing of images, Pillow's does not.


class Transform(Protocol):
    """Image (RGB) and mask (ids; may be None) to normalised float32 (3, H, W) and uint8 (H, W)."""

    def __call__(self, image: Image, mask: Image | None) -> tuple[Tensor, Tensor | None]: ...


def train(crop: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Random resized crop, random horizontal flip, normalisation.

    PyTorch's RandomResizedCrop draws an area of 0.5 to 2 times the image's and an aspect ratio of 3/4 to 4/3, up to ten
    times until the box fits into the image; if none fits it takes the largest centred box of an allowed ratio. Nothing
    is padded. Random numbers come from torch's global CPU generator.

    Args:
        crop: height and width of the result in pixels, at least 1.
        mean: mean of each channel, RGB in [0, 1].
        std: standard deviation of each channel.

    Raises:
        UserError: `crop` is under 1.
    """
    return _Train(crop, mean, std)


def evaluate(crop: int, mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Short side resized to `crop`, centre crop, normalisation.

    Args:
        crop: height and width of the result in pixels, at least 1.
        mean: mean of each channel, RGB in [0, 1].
        std: standard deviation of each channel.

    Raises:
        UserError: `crop` is under 1.
    """
    return _Evaluate(crop, mean, std)


def resized(image: Image, short_side: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The whole image, short side resized to `short_side` pixels, normalised: float32 (3, H, W)."""
    return _Evaluate(short_side, mean, std).whole(image)


def denormalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undoes the normalisation.

    Args:
        image: normalised, floating, (..., 3, H, W).
        mean: mean of each channel, RGB in [0, 1].
        std: standard deviation of each channel.

    Returns:
        RGB in [0, 1], shape and dtype of `image`.
    """
    shape = (len(mean), 1, 1)
    return (image * image.new_tensor(std).view(shape) + image.new_tensor(mean).view(shape)).clamp(0, 1)


class _Normalized:
    def __init__(self, crop: int, mean: Sequence[float], std: Sequence[float]) -> None:
        if crop < 1:
            raise UserError(f"crop: expected at least 1 pixel, got {crop}")
        self.size, self.mean, self.std = [crop, crop], list(mean), list(std)

    def tensors(self, image: Image, mask: Image | None) -> tuple[Tensor, Tensor | None]:
        pixels = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
        return F.normalize(pixels, self.mean, self.std), None if mask is None else F.pil_to_tensor(mask)[0]


class _Train(_Normalized):
    def __call__(self, image: Image, mask: Image | None) -> tuple[Tensor, Tensor | None]:
        box = v2.RandomResizedCrop(self.size, scale=SCALE).make_params([image])
        flip = torch.rand(()).item() < 0.5

        def cut(picture: Image, interpolation: v2.InterpolationMode) -> Image:
            picture = F.resized_crop(picture, **box, size=self.size, interpolation=interpolation)
            return F.horizontal_flip(picture) if flip else picture

        return self.tensors(cut(image, BILINEAR), None if mask is None else cut(mask, NEAREST))


class _Evaluate(_Normalized):
    def whole(self, image: Image) -> Tensor:
        return self.tensors(F.resize(image, self.size[:1], interpolation=BILINEAR), None)[0]

    def __call__(self, image: Image, mask: Image | None) -> tuple[Tensor, Tensor | None]:
        def cut(picture: Image, interpolation: v2.InterpolationMode) -> Image:
            return F.center_crop(F.resize(picture, self.size[:1], interpolation=interpolation), self.size)

        return self.tensors(cut(image, BILINEAR), None if mask is None else cut(mask, NEAREST))

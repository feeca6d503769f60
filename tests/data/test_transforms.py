"""Images and masks are cut alike, and stay bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from wilson.data.transforms import CentreCrop, TrainingCrop, WholeImage
from wilson.errors import UserError


def gradients(width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """An image whose red is 3x and green 3y, and a mask that holds x."""
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    image = torch.stack([3 * x, 3 * y, 0 * x], -1).to(torch.uint8)
    return Image.fromarray(image.numpy()), Image.fromarray(x.to(torch.uint8).numpy())


def test_training_crop_cuts_image_and_mask_alike() -> None:
    image, mask = gradients(80, 60)
    transform = TrainingCrop(48)
    offsets, flips, areas = [], 0, []
    for _ in range(200):
        pixels, ids = transform(image, mask)
        assert ids is not None
        x, y = (pixels[:2] / 3).unbind()
        assert (x - ids).abs().max() <= 0.5 + 0.2, "nearest and bilinear differ by half a pixel, and rounding to 1/3"
        offsets.append((x - ids).mean())
        flips += bool(x[0, 0] > x[0, -1])
        # The outermost samples lie half a sample inside the box.
        areas.append(float((x.max() - x.min()) * (y.max() - y.min()) * (48 / 47) ** 2) / (80 * 60))
    assert abs(torch.stack(offsets).mean()) < 0.05
    assert 70 < flips < 130
    # Boxes of more than the image never fit: what is left is 0.5 to 1 of it.
    assert 0.45 < min(areas) < 0.6
    assert 0.9 < max(areas) <= 1.05


def test_evaluation_resizes_the_short_side_and_takes_the_centre() -> None:
    image, mask = gradients(80, 40)
    pixels, ids = CentreCrop(20)(image, mask)
    assert pixels.shape == (3, 20, 20)
    assert ids is not None and ids.shape == (20, 20)
    x, y = (pixels[:2] / 3).unbind()
    assert x[0, 0] == pytest.approx(20.5, abs=0.7)
    assert x[0, -1] == pytest.approx(58.5, abs=0.7)
    assert y[-1, 0] - y[0, 0] == pytest.approx(38, abs=0.7)
    assert (x - ids).abs().max() <= 0.5 + 0.2


def test_whole_images_are_resized_and_their_masks_are_not() -> None:
    image, mask = gradients(80, 40)
    pixels, ids = WholeImage(20)(image, mask)
    assert pixels.shape == (3, 20, 40)
    assert ids is not None and torch.equal(ids, torch.arange(80, dtype=torch.uint8).expand(40, 80))
    x, y = (pixels[:2] / 3).unbind()
    assert (x - ids[::2, ::2] - 0.5).abs().max() <= 0.7
    assert y[-1, 0] - y[0, 0] == pytest.approx(38, abs=0.7)


@pytest.mark.parametrize("make", [TrainingCrop, CentreCrop, WholeImage])
def test_images_stay_bytes_and_no_mask_stays_none(make: Any) -> None:
    image, mask = gradients(40, 40)
    for given in (mask, None):
        pixels, ids = make(8)(image, given)
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 8, 8))
        assert ids is None if given is None else ids.dtype == torch.uint8


@pytest.mark.parametrize("make", [TrainingCrop, CentreCrop, WholeImage])
def test_crop_of_nothing_is_refused(make: Any) -> None:
    with pytest.raises(UserError, match="crop: expected at least 1 pixel, got 0"):
        make(0)


@pytest.mark.parametrize("size", [(600, 100), (100, 600), (300, 100), (7, 5)])
def test_whole_images_up_to_six_to_one_are_resized_by_their_short_side(size: tuple[int, int]) -> None:
    pixels, _ = WholeImage(20)(Image.new("RGB", size), None)
    assert min(pixels.shape[1:]) == 20 and max(pixels.shape[1:]) == int(20 * max(size) / min(size))


@pytest.mark.parametrize("size", [(8000, 100), (100, 8000), (60000, 10), (20000, 900), (610, 100)])
def test_long_strips_become_no_more_than_six_crops(size: tuple[int, int]) -> None:
    height, width = WholeImage(32)(Image.new("RGB", size), None)[0].shape[1:]
    assert height * width <= 6 * 32 * 32 * 1.1
    assert (width > height) == (size[0] > size[1])


def test_the_centre_of_a_long_strip_is_the_same_without_its_ends() -> None:
    strip = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 160, 3), dtype=np.uint8))
    longer = Image.new("RGB", (100000, 10))
    longer.paste(strip, ((100000 - 160) // 2, 0))
    assert torch.equal(CentreCrop(20)(longer, None)[0], CentreCrop(20)(strip, None)[0])

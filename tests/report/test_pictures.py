"""Colours: the VOC colour map, the colours of the report, overlays."""

import itertools

import numpy as np
import pytest
from PIL import Image

from wilson.config.masks import VOID
from wilson.pictures import overlay, palette

# Linear RGB as seen without the long, the middle or the short cones (Machado, Oliveira, Fernandes 2009, severity 1).
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def lab(colours, vision):
    """CIELAB of sRGB colours (n, 3) as seen with a kind of vision."""
    srgb = np.asarray(colours) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.array(VISION[vision]).T, 0, 1) @ TO_XYZ.T / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def test_voc_colour_map():
    colours = palette.palette(256)
    assert colours[:9] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
        (128, 128, 128),
        (64, 0, 0),
    ]
    assert colours[15] == (192, 128, 128)  # person
    assert colours[VOID] == (224, 224, 192)
    assert len(set(colours)) == 256
    assert palette.palette(21) == colours[:21]


@pytest.mark.parametrize("n", [-1, 257])
def test_palette_refuses_more_than_eight_bits(n):
    with pytest.raises(ValueError, match=r"0\.\.256"):
        palette.palette(n)


def test_a_palette_mask_keeps_its_ids_and_shows_voc_colours(tmp_path):
    ids = np.arange(256, dtype=np.int64).reshape(16, 16)
    palette.apply(ids).save(tmp_path / "mask.png")
    mask = Image.open(tmp_path / "mask.png")
    assert mask.mode == "P"
    assert np.array_equal(np.asarray(mask), ids)
    assert np.array_equal(np.asarray(mask.convert("RGB")).reshape(256, 3), palette.palette(256))


def test_a_mask_with_own_colours_is_white_past_their_end():
    mask = palette.apply(np.array([[0, 1, 255]]), [(1, 2, 3), (4, 5, 6)]).convert("RGB")
    assert np.asarray(mask).tolist() == [[[1, 2, 3], [4, 5, 6], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (np.zeros((2, 2, 3), np.uint8), ValueError),
        (np.zeros((2, 2), np.float32), TypeError),
        (np.full((2, 2), 256), ValueError),
        (np.full((2, 2), -1), ValueError),
    ],
)
def test_what_is_no_mask_is_refused(mask, error):
    with pytest.raises(error, match="mask"):
        palette.apply(mask)


@pytest.mark.parametrize("vision", VISION)
def test_report_colours_stay_apart(vision):
    colours = lab(palette.distinct(21), vision)
    distances = {(i, j): np.linalg.norm(colours[i] - colours[j]) for i, j in itertools.combinations(range(21), 2)}
    assert min(distances.values()) > 11
    assert min(distance for (_, j), distance in distances.items() if j <= 8) > 25


def test_report_colours_do_not_depend_on_their_number():
    colours = palette.distinct(256)
    assert palette.distinct(6) == colours[:6]
    assert len(set(colours)) == 256 and (255, 255, 255) not in colours


def test_overlay_tints_classes_and_leaves_the_background():
    image = np.full((6, 8, 3), 100, np.uint8)
    labels = np.zeros((6, 8), np.int64)
    labels[:, 4:] = 1
    labels[5, :2] = 255
    picture = np.asarray(overlay.overlay(image, labels, colours=[(0, 0, 0), (200, 0, 50)], opacity=0.5))
    assert picture[0, 0].tolist() == [100, 100, 100]
    assert picture[5, 0].tolist() == [100, 100, 100]
    assert picture[0, 6].tolist() == [150, 50, 75]
    assert (picture[:5, 3] == 255).all()  # the border, one pixel wide
    assert (picture[:, 4] != 255).any(axis=1).all()


def test_overlay_takes_the_report_colours_unless_told_otherwise():
    picture = overlay.overlay(Image.new("RGB", (4, 4)), np.full((4, 4), 2), opacity=1.0)
    assert np.asarray(picture)[1, 1].tolist() == list(palette.distinct(3)[2])


def test_overlay_refuses_labels_of_another_size():
    with pytest.raises(ValueError, match="resize"):
        overlay.overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2), np.int64))


def test_soft_colours_blend_by_probability():
    probabilities = np.array([[[1.0, 0.0, 0.25]], [[0.0, 1.0, 0.75]]])
    picture = np.asarray(overlay.soft(probabilities, colours=[(0, 0, 100), (200, 40, 0)]))
    assert picture.tolist() == [[[0, 0, 100], [200, 40, 0], [150, 30, 25]]]


def test_soft_refuses_a_colour_too_few():
    with pytest.raises(ValueError, match="expected 2 colours"):
        overlay.soft(np.full((2, 1, 1), 0.5), colours=[(0, 0, 0)])


def test_legend_names_the_classes_in_the_picture_only():
    labels = np.zeros((40, 120), np.int64)
    labels[:10] = 2
    picture = Image.new("RGB", (120, 40))
    out = overlay.legend(picture, labels, ["background", "cat", "dog"])
    assert out.width == 120
    assert out.height > 40
    strip = {tuple(pixel) for pixel in np.asarray(out)[40:].reshape(-1, 3)}
    colours = palette.distinct(3)
    assert {colour for colour in colours if colour in strip} == {colours[2]}
    assert overlay.legend(picture, np.zeros_like(labels), ["background", "cat", "dog"]) is picture


def test_legend_wraps_where_the_picture_is_narrow():
    labels = np.arange(6).reshape(1, 6).repeat(4, 0)
    names = ["background", "aeroplane", "bicycle", "bird", "boat", "bottle"]
    narrow = overlay.legend(Image.new("RGB", (100, 4)), labels, names)
    wide = overlay.legend(Image.new("RGB", (600, 4)), labels, names)
    assert narrow.height > wide.height

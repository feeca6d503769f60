"""Pictures of what a model sees: class colours over an image, and colours blended by probability."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wilson.config.masks import VOID
from wilson.pictures import palette


def overlay(
    image: Image.Image | np.ndarray,
    labels: np.ndarray,
    *,
    colours: Sequence[palette.Colour] | None = None,
    opacity: float = 0.55,
) -> Image.Image:
    """Tint the classes of an image in their colours, and outline them with thin borders.

    The background (label 0) and unlabelled pixels (label 255) keep the image's own colours.

    Args:
        image: RGB, PIL image or uint8 array (H, W, 3).
        labels: integers (H, W), output channels or mask ids, 0 to 255.
        colours: colour of each label; None for the report's colours by output channel.
        opacity: share of the class colour in a tinted pixel, 0 to 1.

    Returns:
        An RGB image (H, W).

    Raises:
        ValueError: the sizes of image and labels differ, or the opacity is outside 0..1.
    """
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image, dtype=np.float32)
    if pixels.shape != (*labels.shape, 3):
        raise ValueError(
            f"overlay: image must be (H, W, 3) with the labels' (H, W), got image {pixels.shape} and labels"
            f" {labels.shape}; resize the labels to the image first"
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"overlay: opacity must be in 0..1, got {opacity}")
    tint = np.asarray(palette.apply(labels, palette.distinct(256) if colours is None else colours).convert("RGB"))
    tinted = (labels != 0) & (labels != VOID)
    mixed = np.where(tinted[..., None], (1 - opacity) * pixels + opacity * tint, pixels)
    mixed[_borders(labels)] = 255
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def _borders(labels: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another label, as bool (H, W): a line one pixel wide."""
    borders = np.zeros(labels.shape, dtype=bool)
    borders[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    borders[:-1] |= labels[:-1] != labels[1:]
    return borders


def soft(probabilities: np.ndarray, *, colours: Sequence[palette.Colour] | None = None) -> Image.Image:
    """Blend the class colours by probability: a certain pixel gets its class's colour, an uncertain one a mixture.

    Args:
        probabilities: floating (C, H, W), non-negative, summing to 1 over the C channels; at most 256 channels.
        colours: C colours; None for the report's colours.

    Returns:
        An RGB image (H, W).

    Raises:
        ValueError: the probabilities are not (C, H, W), or there are not C colours.
    """
    if probabilities.ndim != 3:
        raise ValueError(f"soft: probabilities must be (C, H, W), got shape {probabilities.shape}")
    table = np.array(palette.distinct(len(probabilities)) if colours is None else colours, dtype=np.float64)
    if len(table) != len(probabilities):
        raise ValueError(f"soft: expected {len(probabilities)} colours, one per channel, got {len(table)}")
    blended = np.einsum("chw,cr->hwr", probabilities, table)
    return Image.fromarray(np.rint(blended.clip(0, 255)).astype(np.uint8))


def legend(picture: Image.Image, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Add a strip below a picture that names the colours of its classes, as `overlay` draws them.

    Args:
        picture: RGB image.
        labels: output channels (H, W), integers; the background and 255 are not listed.
        names: class names in channel order.

    Returns:
        As :func:`with_legend`.
    """
    present = [int(channel) for channel in np.unique(labels) if 0 < channel < len(names)]
    colours = palette.distinct(len(names))
    return with_legend(picture, [(names[channel], colours[channel]) for channel in present])


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, palette.Colour]]) -> Image.Image:
    """Add a strip below a picture with names and their colours.

    Args:
        picture: RGB image.
        entries: names and colours, in their order.

    Returns:
        An RGB image, higher by the strip, and wider if a name needs it; the picture itself without entries.
    """
    if not entries:
        return picture
    font = ImageFont.load_default(size=14)
    swatch, gap, line = 12, 6, 22
    widths = [swatch + gap + int(font.getlength(name)) for name, _ in entries]
    across = max(picture.width, max(widths) + 2 * gap)
    places, x, y = [], gap, 0
    for (name, colour), width in zip(entries, widths, strict=True):
        if x > gap and x + width > across - gap:
            x, y = gap, y + line
        places.append((name, colour, x, y))
        x += width + 2 * gap
    out = Image.new("RGB", (across, picture.height + y + line), "white")
    out.paste(picture)
    draw = ImageDraw.Draw(out)
    for name, colour, x, y in places:
        top = picture.height + y + (line - swatch) // 2
        draw.rectangle((x, top, x + swatch - 1, top + swatch - 1), fill=colour, outline="grey")
        middle = picture.height + y + line // 2
        draw.text((x + swatch + gap, middle), name, fill="black", font=font, anchor="lm")
    return out

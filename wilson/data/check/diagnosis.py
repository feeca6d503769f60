"""Guess why the ids in masks do not fit the classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from wilson.config.masks import BACKGROUND, VOID
from wilson.data.images import Stored
from wilson.data.names import COCO_GAPS, COCO_IDS
from wilson.data.sources.coco import LAST, MAPS, UNUSED


def likely_cause(pixels: NDArray[np.int64], classes: Sequence[str]) -> str | None:
    """Guess why the ids of a data set's masks are wrong.

    Args:
        pixels: number of pixels of each mask id, (256,), over all masks.
        classes: class names by mask id, background first.

    Returns:
        The likely cause and its remedy; None if nothing looks wrong.
    """
    found = frozenset(np.flatnonzero(pixels[:VOID]).tolist())
    last = len(classes) - 1
    unknown = sorted(class_id for class_id in found if class_id > last)
    if not unknown:
        # The background has become 255, so the classes begin at 0.
        if last not in found and pixels[VOID] > pixels[BACKGROUND] > 0:
            return (
                f"every id is probably one too low: no mask holds the last class ({last}, {classes[last]}), and 255 "
                "covers more pixels than 0, so 0 seems to be the first class and 255 the background; add 1 to every "
                "id, and turn 255 into 0"
            )
        if found == {BACKGROUND} and pixels[VOID]:
            return (
                "255 is probably the class: the masks hold 0 and 255 alone, and 255 means no label; turn 255 into the "
                f"id of the class, such as 1 ({classes[1]})"
            )
        return None
    if last == len(COCO_IDS) and unknown[-1] <= COCO_IDS[-1] and not found & COCO_GAPS:
        return (
            "the ids are probably COCO's category ids, which run from 1 to 90 with gaps; "
            "number the categories from 1 to 80 in their order"
        )
    if last == len(COCO_IDS) and unknown[-1] <= LAST and not found & UNUSED:
        return (
            "the ids are probably those of COCO-Stuff's pixel maps, COCO's category ids less 1; use COCO's layout: put "
            f"the maps into {MAPS[0]}/SPLIT and the images into images/SPLIT"
        )
    if unknown == [last + 1] and (BACKGROUND not in found or 1 not in found):
        first = BACKGROUND if BACKGROUND not in found else 1
        return (
            f"every id is probably one too high: no mask holds {first} ({classes[first]}), and {last + 1} has no name; "
            f"subtract 1 from every id but {'255' if first == BACKGROUND else '0 and 255'}"
        )
    return (
        f"the classes are 0 to {last}, and the masks also hold {_listed(unknown)}: either classes.txt in the data "
        "set's folder lacks names (without the file, the classes are VOC's), or the masks hold shades of grey "
        "instead of ids"
    )


def turns_doubtfully(image: Stored, mask: tuple[int, int]) -> str | None:
    """What is unsure about an image that EXIF data turns if its mask, of this size, fits it turned or not."""
    if image.orientation == 1 or not mask == image.size == image.upright:
        return None
    return (
        "the EXIF data turns this image, and its mask fits it either way: the mask is turned with it, as one drawn on "
        "the stored pixels; if it was drawn on the upright image, store the image upright, without EXIF data"
    )


def map_shift(pixels: NDArray[np.int64]) -> str | None:
    """Guess why the values of COCO-Stuff's pixel maps are wrong.

    Args:
        pixels: number of pixels of each value, (256,), over all maps.

    Returns:
        The likely cause and its remedy if all values are off by one; None otherwise.
    """
    found = frozenset(np.flatnonzero(pixels[:VOID]).tolist())
    if found & UNUSED and not found & {value + 1 for value in UNUSED}:
        zero = "0 becomes 255" if any(value > COCO_IDS[-1] + 1 for value in found) else "0, the background, becomes 91"
        return (
            "every value is probably one too high: the maps seem to hold category ids, and COCO-Stuff's hold category "
            f"ids less 1; subtract 1 from every value but 255 ({zero})"
        )
    if found & UNUSED and not found & {value - 1 for value in UNUSED}:
        return "every value is probably one too low, and the first class became 255; unpack COCO-Stuff's maps again"
    return None


def label_shift(masks: Iterable[frozenset[int]], labels: Iterable[frozenset[int]]) -> int | None:
    """Find out whether the ids of masks are all off by one from the image-level labels.

    Args:
        masks: all ids of each mask but 255, background included.
        labels: the labels of the same images.

    Returns:
        1 or -1 if the ids of every mask plus this number are the labels; None otherwise.
    """
    pairs = list(zip(masks, labels, strict=True))
    for shift in (1, -1):
        moved = [({class_id + shift for class_id in held}, told) for held, told in pairs]
        # Labels do not tell the background, so it may have moved with the classes or not.
        if any(told for _, told in moved) and all(told <= held <= told | {shift, BACKGROUND} for held, told in moved):
            return shift
    return None


def _listed(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:10])) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")

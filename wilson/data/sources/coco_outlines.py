"""The outlines of COCO's annotations: polygons, and run-length encodings as lists or text; drawn, and encoded."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wilson.data.sources.coco_json import count
from wilson.errors import UserError

BEYOND = 4  # corners may lie this many times the image's longer side away; farther ones overflow pycocotools' integers


def outline(annotation: dict[str, Any], size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """Draw an annotation's outline.

    Polygons of under three corners enclose nothing and are passed over.

    Args:
        annotation: its `segmentation` is a list of polygons, a single polygon, a run-length encoding or a list of
            these, or any of this as JSON text.
        size: width and height of the image.
        where: begins errors.

    Returns:
        The pixels inside, bool (H, W).

    Raises:
        UserError: there is no outline, or it is malformed.
    """
    where = f"{where}: 'segmentation'"
    shape = annotation.get("segmentation")
    if isinstance(shape, str):
        try:
            shape = json.loads(shape)
        except ValueError:
            raise UserError(f"{where} is text that is no JSON; expected polygons or a run-length encoding") from None
    shapes = [shape] if isinstance(shape, dict) or (isinstance(shape, list) and any(map(_is_number, shape))) else shape
    if shapes is not None and not isinstance(shapes, list):
        raise UserError(f"{where} is of type {type(shapes).__name__}; expected polygons or a run-length encoding")
    drawn = [found for part in shapes or () if (found := _draw(part, size, where)) is not None]
    if not drawn:
        raise UserError(
            f"{where} holds no outline (a box alone does not tell pixels); draw one, or take the annotation or its "
            "image out; steps from image-level labels need no outline"
        )
    return np.logical_or.reduce(drawn)


def is_crowd(annotation: dict[str, Any], where: str) -> bool:
    """Whether an annotation covers a crowd; without `iscrowd` it does not. UserError if that is neither 0 nor 1."""
    value = annotation.get("iscrowd")
    number = int(value) if isinstance(value, bool) else count(0 if value is None else value, f"{where}: 'iscrowd'")
    if number > 1:
        raise UserError(f"{where}: 'iscrowd' is {value!r}; expected 0 or 1")
    return bool(number)


def area(annotation: dict[str, Any], size: tuple[int, int], where: str) -> float:
    """The area of an annotation as its file tells it, else its number of pixels."""
    value: Any = annotation.get("area")
    return float(value) if _is_number(value) else float(outline(annotation, size, where).sum())


def _draw(shape: Any, size: tuple[int, int], where: str) -> NDArray[np.bool_] | None:
    if isinstance(shape, dict):
        return _decoded(shape, size, where)
    if not isinstance(shape, list) or not all(map(_is_number, shape)) or len(shape) % 2:
        raise UserError(f"{where} holds {str(shape)[:60]}; expected polygons, lists of x1, y1, x2, y2, x3, y3, ...")
    if max(map(abs, shape), default=0) > BEYOND * max(size):
        raise UserError(f"{where} leads beyond {BEYOND * max(size)} pixels; expected corners near the image")
    if len(shape) < 6:
        return None
    from pycocotools import mask

    width, height = size
    return mask.decode(mask.frPyObjects([shape], height, width))[..., 0].astype(bool)


def _decoded(encoding: dict[str, Any], size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """Decode runs of 0 and 1 in turn, column by column."""
    width, height = size
    counts, told = encoding.get("counts"), encoding.get("size", [height, width])
    if not isinstance(told, list) or [count(side, f"{where}: 'size'") for side in told] != [height, width]:
        raise UserError(f"{where}: 'size' is {told}; expected height and width of the image, [{height}, {width}]")
    if isinstance(counts, str):
        runs = _runs(counts, where)
    elif isinstance(counts, list):
        runs = [count(run, f"{where}: 'counts'") for run in counts]
    else:
        raise UserError(f"{where}: 'counts' is of type {type(counts).__name__}; expected a list or text")
    if sum(runs) != width * height:
        raise UserError(f"{where}: 'counts' add up to {sum(runs)}; expected {width * height}, all pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _runs(text: str, where: str) -> list[int]:
    """The runs that COCO's text stands for; pycocotools fills a mask whose runs are too short with stray memory.

    Each number has characters of 6 bits from "0" on: 5 bits of the number, the lowest first, and whether more follow.
    From the fourth on, a number is the difference to the run two before.
    """
    runs: list[int] = []
    number = shift = 0
    for code in text.encode():
        bits = code - ord("0")
        number |= (bits & 31) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 35:
            raise UserError(f"{where}: 'counts' cannot be decoded: it holds what COCO's text never does")
        if not bits & 32:
            number -= (bits & 16) << (shift - 4)  # its sign
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    if shift or min(runs, default=0) < 0:
        raise UserError(f"{where}: 'counts' cannot be decoded: it breaks off or holds a run of under 0 pixels")
    return runs


def encoded(inside: NDArray[np.bool_]) -> dict[str, Any]:
    """The run-length encoding of a mask as COCO's text, which :func:`outline` and pycocotools decode.

    Args:
        inside: bool (H, W).

    Returns:
        `size`, [H, W], and `counts`, the text that :func:`_runs` describes.
    """
    pixels = inside.T.ravel()
    changes = np.flatnonzero(np.diff(pixels.astype(np.int8), prepend=0))  # the first run is one of 0
    runs = np.diff([0, *changes, pixels.size]).tolist()
    text = bytearray()
    for place, run in enumerate(runs):
        number = run - (runs[place - 2] if place > 2 else 0)
        more = True
        while more:
            bits, number = number & 31, number >> 5
            more = number != (-1 if bits & 16 else 0)  # the rest is not the sign alone
            text.append(ord("0") + bits + 32 * more)
    return {"size": list(inside.shape), "counts": text.decode()}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

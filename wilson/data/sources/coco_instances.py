"""Instances in COCO's JSON format, drawn as masks."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wilson.config.masks import VOID
from wilson.data.files import inside, read_image
from wilson.data.sources.base import ImageSource
from wilson.errors import UserError


class Instances(ImageSource):
    """Images with instances from a file such as COCO's `instances_train2017.json`; needs pycocotools.

    Mask ids number the file's categories from 1, in the order of their ids. Smaller instances lie on top of larger
    ones. Pixels that only a crowd covers are 255 in the mask; the image still counts as holding the crowd's class.

    Args:
        file: the JSON.
        folder: of the images.

    Raises:
        UserError: pycocotools is missing, the JSON is malformed, or an image has no file or lies outside of the folder.
    """

    crowds = True

    def __init__(self, file: Path, folder: Path) -> None:
        try:
            from pycocotools.coco import COCO
        except ImportError as error:
            raise UserError('COCO\'s JSON needs the package pycocotools: pip install "wilson-seg[coco]"') from error
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # COCO prints its progress
                self._coco = COCO(str(file))
            categories = sorted(self._coco.cats.values(), key=lambda category: category["id"])
            self._ids = {category["id"]: number for number, category in enumerate(categories, 1)}
            self.classes = ("background", *(str(category["name"]) for category in categories))
            self._entries = sorted(self._coco.imgs.values(), key=lambda entry: str(entry["file_name"]))
            self._annotations = [self._coco.imgToAnns[entry["id"]] for entry in self._entries]
            self._held = [frozenset(self._ids[a["category_id"]] for a in held) for held in self._annotations]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise UserError(
                f"{file}: cannot be read as COCO's JSON of instances ({type(error).__name__}: {error})"
            ) from error
        if not self._entries or not 1 < len(self.classes) <= VOID:
            raise UserError(
                f"{file}: expected images and 1 to {VOID - 1} categories, got {len(self._entries)} images and "
                f"{len(categories)} categories"
            )
        paths = [inside(str(entry["file_name"]), f"{file}: '{entry['file_name']}'") for entry in self._entries]
        self.names = [path.with_suffix("").as_posix() for path in paths]
        self._images = [folder / path for path in paths]
        missing = [path for path in self._images if not path.is_file()]
        if missing:
            raise UserError(
                f"{missing[0]}: no such image, named in {file} ({len(missing)} of {len(paths)} images are missing)"
            )

    def image(self, index: int) -> Image.Image:
        return read_image(self._images[index])

    def mask(self, index: int) -> Image.Image:
        entry = self._entries[index]
        try:
            mask = np.zeros((entry["height"], entry["width"]), np.uint8)
            for annotation in sorted(self._annotations[index], key=_height):
                _check(annotation["segmentation"], 4 * max(mask.shape))
                shape = self._coco.annToMask(annotation).astype(bool)
                mask[shape] = VOID if _crowd(annotation) else self._ids[annotation["category_id"]]
        except Exception as error:  # pycocotools raises a bare Exception, too
            raise UserError(
                f"image '{self.names[index]}': its instances cannot be drawn ({type(error).__name__}: {error}); "
                "fix the JSON, or take the image out"
            ) from error
        return Image.fromarray(mask)

    def has_mask(self, index: int) -> bool:
        return True

    def class_ids(self, index: int) -> frozenset[int]:
        return self._held[index]

    def files(self, index: int) -> tuple[Path, ...]:
        return (self._images[index],)

    def drawn_from(self, index: int) -> str:
        return json.dumps([self._entries[index], self._annotations[index]])


def _check(shape: Any, limit: float) -> None:
    """Refuse corners far outside of the image: they overflow pycocotools' integers, and the process dies."""
    if isinstance(shape, list):
        for polygon in shape:
            if not np.all(np.abs(np.asarray(polygon, np.float64)) <= limit):
                raise ValueError(f"a polygon leads beyond {limit:g} pixels")


def _crowd(annotation: dict[str, Any]) -> bool:
    return bool(annotation.get("iscrowd", 0))


def _height(annotation: dict[str, Any]) -> tuple[bool, float]:
    """The order in which instances are drawn: crowds first, then from the largest to the smallest."""
    return not _crowd(annotation), -float(annotation["area"])

"""A data set seen otherwise: some of its images, or with the classes of another data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from wilson.config.masks import VOID
from wilson.data.names import find, named
from wilson.data.scan import broken, fault
from wilson.data.sources.base import ImageSource
from wilson.errors import UserError


class View(ImageSource):
    """A source seen through `at`, which gives the position of an image in it; every other question is handed on."""

    source: ImageSource

    def at(self, index: int) -> int:
        return index

    def image(self, index: int) -> Image.Image:
        return self.source.image(self.at(index))

    def mask(self, index: int) -> Image.Image | None:
        return self.source.mask(self.at(index))

    def has_mask(self, index: int) -> bool:
        return self.source.has_mask(self.at(index))

    def class_ids(self, index: int) -> frozenset[int]:
        return self.source.class_ids(self.at(index))

    def files(self, index: int) -> tuple[Path, ...]:
        return self.source.files(self.at(index))

    def drawn_from(self, index: int) -> str:
        return self.source.drawn_from(self.at(index))


class Chosen(View):
    """Some images of a source.

    Args:
        source: the images.
        indices: which of them, in their new order.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.source, self.indices, self.classes = source, list(indices), source.classes
        self.names = [source.names[index] for index in self.indices]
        self.crowds = source.crowds
        self.left_out = len(source.names) - len(self.names)

    def at(self, index: int) -> int:
        return self.indices[index]


def usable(source: ImageSource, where: object) -> tuple[ImageSource, str]:
    """The images of a source without those that cannot be read, or whose mask does not fit; and what is left out.

    Raises:
        UserError: none is left.
    """
    everything = range(len(source.names))
    left_out = broken(source, everything)
    if not left_out:
        return source, ""
    example = f"such as: {fault(source, left_out[0])}"
    if len(left_out) == len(everything):
        raise UserError(f"{where}: none of the {len(everything)} images can be used, {example}")
    text = f"{where}: {len(left_out)} of {len(everything)} images are left out, {example}"
    return Chosen(source, sorted(set(everything).difference(left_out))), text


def without(source: ImageSource, word: str) -> ImageSource:
    """The images of a source that do not hold a class, given by name or mask id; UserError if there are none."""
    class_id = named(word, source.classes, "class to leave out")
    kept = [index for index in range(len(source.names)) if class_id not in source.class_ids(index)]
    if not kept:
        raise UserError(f"class to leave out: all images hold '{word}'; choose another class or more images")
    return Chosen(source, kept)


class Matched(View):
    """A source with the mask ids of another data set's classes, found by their names (VOC's also by COCO's).

    Args:
        source: the images.
        classes: class names of the other data set by mask id, background first.
        where: the source's folder, for errors.

    Raises:
        UserError: a class of the source is none of `classes`.
    """

    def __init__(self, source: ImageSource, classes: Sequence[str], where: object) -> None:
        found = {name: find(name, classes) for name in source.classes}
        missing = [name for name, class_id in found.items() if class_id is None]
        if missing:
            raise UserError(
                f"{where}: the classes {', '.join(missing)} are unknown there where its images are to be used; "
                f"expected names among {', '.join(classes[1:])}"
            )
        self.source, self.classes, self.names, self.crowds = source, tuple(classes), source.names, source.crowds
        self._table = np.full(256, VOID, np.uint8)
        self._table[: len(found)] = np.array(list(found.values()))

    def mask(self, index: int) -> Image.Image | None:
        mask = super().mask(index)
        return None if mask is None else Image.fromarray(self._table[np.asarray(mask)])

    def class_ids(self, index: int) -> frozenset[int]:
        return frozenset(int(self._table[class_id]) for class_id in super().class_ids(index))


def matched(source: ImageSource, classes: Sequence[str] | None, where: object) -> ImageSource:
    """The source itself where its classes are these or none are asked for, else seen with them."""
    return source if classes is None or source.classes == tuple(classes) else Matched(source, classes, where)

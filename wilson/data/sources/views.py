"""Views of a data set: some of its images, or its images with the classes of another data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from wilson.config.masks import BACKGROUND, VOID
from wilson.data.names import find, named
from wilson.data.scan import broken, fault
from wilson.data.sources.base import ImageSource
from wilson.errors import UserError


class View(ImageSource):
    """A view of one source or several. `place` says where an image comes from; everything else is asked there."""

    source: ImageSource

    def place(self, index: int) -> tuple[ImageSource, int]:
        """The source of image `index` of the view, and its position there."""
        return self.source, index

    def image(self, index: int) -> Image.Image:
        source, place = self.place(index)
        return source.image(place)

    def mask(self, index: int) -> Image.Image | None:
        source, place = self.place(index)
        return source.mask(place)

    def has_mask(self, index: int) -> bool:
        source, place = self.place(index)
        return source.has_mask(place)

    def class_ids(self, index: int) -> frozenset[int]:
        source, place = self.place(index)
        return source.class_ids(place)

    def files(self, index: int) -> tuple[Path, ...]:
        source, place = self.place(index)
        return source.files(place)

    def drawn_from(self, index: int) -> str:
        source, place = self.place(index)
        return source.drawn_from(place)


class Chosen(View):
    """Some images of a source.

    Args:
        source: the images.
        indices: positions of the chosen images in the source, in their new order.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self.source, self.indices, self.classes = source, list(indices), source.classes
        self.names = [source.names[index] for index in self.indices]
        self.crowds = source.crowds
        self.left_out = len(source.names) - len(self.names)

    def place(self, index: int) -> tuple[ImageSource, int]:
        return self.source, self.indices[index]


class Joined(View):
    """The images of one source or several with the same classes, one source after the other."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.classes, self.crowds = sources[0].classes, any(source.crowds for source in sources)
        self.names = [name for source in sources for name in source.names]
        self._places = [(source, index) for source in sources for index in range(len(source.names))]

    def place(self, index: int) -> tuple[ImageSource, int]:
        return self._places[index]


def usable(source: ImageSource, where: object) -> tuple[ImageSource, str]:
    """Leave out the images of a source that cannot be read or whose mask does not fit.

    Returns:
        The other images, and a line that says what was left out (empty if nothing was).

    Raises:
        UserError: no image is left.
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
    """The images of a source that do not hold a class (a name or a mask id); UserError if there are none."""
    class_id = named(word, source.classes, "class to leave out")
    kept = [index for index in range(len(source.names)) if class_id not in source.class_ids(index)]
    if not kept:
        raise UserError(f"class to leave out: all images hold '{word}'; choose another class or more images")
    return Chosen(source, kept)


class Matched(View):
    """A source with the mask ids of another data set. Classes are matched by name; VOC's and COCO's are both known.

    Args:
        source: the images.
        classes: class names of the other data set by mask id, background first.
        where: folder of the source, for errors.
        others: the mask id of the source's classes that `classes` lacks; None refuses them.

    Raises:
        UserError: `classes` lacks a class of the source.
    """

    def __init__(self, source: ImageSource, classes: Sequence[str], where: object, others: int | None = None) -> None:
        found = {name: find(name, classes) for name in source.classes}
        missing = [name for name, class_id in found.items() if class_id is None]
        if missing and others is None:
            raise UserError(
                f"{where}, used with another data set: the classes {', '.join(missing)} are unknown there; "
                f"expected names among {', '.join(classes[1:])}"
            )
        self.source, self.classes, self.names, self.crowds = source, tuple(classes), source.names, source.crowds
        self._table = np.full(256, VOID, np.uint8)
        self._table[: len(found)] = np.array([others if i is None else i for i in found.values()])

    def mask(self, index: int) -> Image.Image | None:
        mask = super().mask(index)
        return None if mask is None else Image.fromarray(self._table[np.asarray(mask)])

    def class_ids(self, index: int) -> frozenset[int]:
        return frozenset(int(self._table[class_id]) for class_id in super().class_ids(index)) - {BACKGROUND}


def matched(source: ImageSource, classes: Sequence[str] | None, where: object) -> ImageSource:
    """The source with these classes: itself if it has them or `classes` is None, else a :class:`Matched` view."""
    return source if classes is None or source.classes == tuple(classes) else Matched(source, classes, where)

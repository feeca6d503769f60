"""The interface of a data set, before any task or transform."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wilson.data.images import header

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageSource(Protocol):
    """One split of a data set: images, and masks or image-level labels.

    Attributes:
        classes: class names by mask id; the first is "background".
        names: image names, unique within the split.
        crowds: whether 255 covers objects of the classes. Training then leaves 255 out, else it takes it as background.
    """

    classes: tuple[str, ...]
    names: Sequence[str]
    crowds: bool = False

    def image(self, index: int) -> Image:
        """The image, RGB."""
        ...

    def mask(self, index: int) -> Image | None:
        """The mask of 8-bit ids, mode L or P, 255 for pixels without a label; None if there is no mask."""
        ...

    def has_mask(self, index: int) -> bool:
        """Whether the image has a mask; reads no file."""
        ...

    def class_ids(self, index: int) -> frozenset[int]:
        """Mask ids of the classes in the image, without background and 255."""
        ...

    def files(self, index: int) -> tuple[Path, ...]:
        """The files that the image and its mask are read from; empty if they are drawn."""
        return ()

    def drawn_from(self, index: int) -> str:
        """What the mask is drawn from besides these files, as text; empty if nothing."""
        return ""


def image_size(source: ImageSource, index: int) -> tuple[int, int]:
    """Width and height of an upright image, from the header of its file if it has one."""
    files = source.files(index)
    return header(files[0]).upright if files else source.image(index).size


def class_sets(source: ImageSource) -> list[frozenset[int]]:
    """Mask ids of the classes in each image of a source, in its order."""
    return [source.class_ids(index) for index in range(len(source.names))]


def fingerprint(source: ImageSource, classes: bool = True) -> dict[str, Any]:
    """What the images of a source are known by, wherever they lie: their number, and a digest of names and classes."""
    digest, sets = hashlib.blake2b(digest_size=16), class_sets(source) if classes else []
    for index, name in enumerate(source.names):
        digest.update(f"{name!r} {sorted(sets[index]) if classes else ''}\n".encode())
    return {"count": len(source.names), "digest": digest.hexdigest()}

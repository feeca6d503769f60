"""Read all files of a data set once, to find the classes in each mask and the images that cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wilson.config.masks import VOID
from wilson.data.cache import cached
from wilson.data.images import read_mask
from wilson.data.sources.base import ImageSource
from wilson.errors import UserError

# Raise a number when the findings, or the way they are stored, change.
SCAN, BROKEN = "scan 3", "broken 2"


def scan(masks: Sequence[Path]) -> list[frozenset[int] | None]:
    """The ids in each mask, without 255; cached.

    Args:
        masks: files of 8-bit ids with one channel.

    Returns:
        One set for each mask; None for a mask that cannot be read.
    """

    def look(path: Path) -> list[int] | None:
        try:
            return sorted(mask_ids(path))
        except UserError:
            return None

    def find() -> list[list[int] | None]:
        return [look(path) for path in tqdm(masks, desc="Scanning masks for classes", unit="mask")]

    return [None if ids is None else frozenset(ids) for ids in cached(SCAN, masks, find)]


def mask_ids(path: Path) -> frozenset[int]:
    """The ids in a mask, without 255; UserError if it cannot be read."""
    return ids_among(np.array(read_mask(path).histogram()))


def ids_among(pixels: NDArray[np.int64]) -> frozenset[int]:
    """The ids in a mask, without 255, from its number of pixels of each id, (256,)."""
    return frozenset(np.flatnonzero(pixels[:VOID]).tolist())


def broken(source: ImageSource, indices: Sequence[int]) -> list[int]:
    """Those of a source's images at `indices` that have a fault; cached."""
    indices = [index for index in indices if source.files(index)]
    # An image comes once with each of its files, because what is found depends on all of them.
    owners = [(index, file) for index in indices for file in source.files(index)]

    def find() -> list[bool]:
        faulty = {index: bool(fault(source, index)) for index in tqdm(indices, desc="Reading images", unit="image")}
        return [faulty[index] for index, _ in owners]

    drawn = hashlib.blake2b(digest_size=16)
    for index in indices:
        drawn.update(f"{source.drawn_from(index)}\n".encode())
    found = cached(f"{BROKEN} {drawn.hexdigest()}", [file for _, file in owners], find)
    return list(dict.fromkeys(index for (index, _), wrong in zip(owners, found, strict=True) if wrong))


def fault(source: ImageSource, index: int) -> str:
    """Why an image cannot be used: it or its mask cannot be read, or their sizes differ; empty if it can be used."""
    try:
        image, mask = source.image(index), source.mask(index)
    except UserError as error:
        return str(error)
    return mismatch(source.names[index], image.size, mask.size) if mask is not None else ""


def mismatch(name: str, image: tuple[int, int], mask: tuple[int, int]) -> str:
    """What is wrong with the sizes (width, height) of an image and its mask; empty if they agree."""
    if image == mask:
        return ""
    return "image '{}' is {}x{} pixels, its mask {}x{}; they must have the same size, pixel for pixel".format(
        name, *image, *mask
    )

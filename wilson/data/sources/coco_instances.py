"""Instances in COCO's JSON format, drawn as masks."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from wilson.config.masks import BACKGROUND, VOID
from wilson.data.files import Finder, bare, inside
from wilson.data.images import header, how_stored, read_image, turned
from wilson.data.scan import mismatch
from wilson.data.sources.base import ImageSource
from wilson.data.sources.coco_json import Document
from wilson.data.sources.coco_outlines import area, is_crowd, outline
from wilson.errors import UserError


class Instances(ImageSource):
    """Images with instances from a file such as COCO's `instances_train2017.json`; needs pycocotools.

    Mask ids number the file's categories from 1, in the order of their ids. Smaller instances lie on top of larger
    ones. Pixels that only a crowd covers are 255 in the mask; the image still counts as holding the crowd's class.
    An image without annotations is all background.

    Args:
        file: the JSON.
        folder: of the images.

    Raises:
        UserError: pycocotools is missing, the JSON is malformed, or an image has no file or lies outside of the folder.
    """

    crowds = True

    def __init__(self, file: Path, folder: Path) -> None:
        if find_spec("pycocotools") is None:
            raise UserError('COCO\'s JSON needs the package pycocotools: pip install "wilson-seg[coco]"')
        self._document = Document(file)
        self.classes = self._document.classes
        pictures = self._document.pictures
        self._held = [
            frozenset(self._document.mask_id(picture, annotation) for annotation in annotations) - {BACKGROUND}
            for picture, annotations in zip(pictures, self._document.annotations, strict=True)
        ]
        paths = [inside(picture.file, f"{file}: image id {picture.id}: '{picture.file}'") for picture in pictures]
        self.names = [bare(path).as_posix() for path in paths]
        find = Finder([folder, folder.parent])  # some files name the split's folder, too
        found = [find(path) for path in paths]
        self._images = [path for path in found if path is not None]
        missing = [path for path, image in zip(paths, found, strict=True) if image is None]
        if missing:
            raise UserError(
                f"{folder / missing[0]}: no such image, named in {file} ({len(missing)} of {len(paths)} images are "
                f"missing; looked for {find.sought(missing[0])})"
            )

    def image(self, index: int) -> Image.Image:
        return read_image(self._images[index])

    def mask(self, index: int) -> Image.Image:
        picture, file = self._document.pictures[index], self._images[index]
        stored = how_stored(file)
        size = picture.size or header(file).size
        if stored.size != (0, 0) and size not in (stored.size, stored.upright):
            raise UserError(mismatch(self.names[index], stored.size, size))
        mask = np.zeros(size[::-1], np.uint8)
        told = [(self._document.where(picture, held), held) for held in self._document.annotations[index]]
        crowds = [is_crowd(held, where) for where, held in told]
        # Crowds first, then from the largest to the smallest
        order = sorted(range(len(told)), key=lambda i: (not crowds[i], -area(told[i][1], size, told[i][0])))
        for i in order:
            where, held = told[i]
            mask[outline(held, size, where)] = VOID if crowds[i] else self._document.mask_id(picture, held)
        return turned(Image.fromarray(mask), stored)

    def has_mask(self, index: int) -> bool:
        return True

    def class_ids(self, index: int) -> frozenset[int]:
        return self._held[index]

    def files(self, index: int) -> tuple[Path, ...]:
        return (self._images[index],)

    def drawn_from(self, index: int) -> str:
        return json.dumps([self._document.pictures[index], self._document.annotations[index]])

"""Data sets in the folder layouts of COCO: COCO-Stuff's pixel maps, or instances as JSON.

images/train2017 or train2017                  the images
annotations/train2017                          COCO-Stuff's pixel maps; or in stuffthingmaps_trainval2017
annotations/instances_train2017.json           COCO's instances, where there are no maps
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath

import numpy as np
from PIL import Image

from wilson.config.masks import BACKGROUND, VOID
from wilson.data.files import MASK_EXTENSIONS, Finder, bare, images_below, is_data
from wilson.data.images import read_image, read_mask
from wilson.data.names import COCO_CLASSES, COCO_GAPS, COCO_IDS
from wilson.data.scan import mask_ids, scan
from wilson.data.sources.base import ImageSource
from wilson.data.sources.voc import CLASSES, LISTS
from wilson.errors import UserError

IMAGES = ("images", ".")
MAPS = ("annotations", "stuffthingmaps_trainval2017")
INSTANCES = "annotations/instances_{}.json"

# A pixel's value is its category id less 1: 0 to 90 for things (11 of them never used), 91 to 181 for stuff, 255 for no
# label.
LAST = 181
UNUSED = frozenset(category - 1 for category in (*COCO_GAPS, 91))

TABLE = np.zeros(256, np.uint8)  # mask id of each value
TABLE[np.array(COCO_IDS) - 1] = np.arange(1, len(COCO_CLASSES))
TABLE[VOID] = VOID


class StuffMaps(ImageSource):
    """COCO images with COCO-Stuff's pixel maps.

    Mask ids are COCO's 80 things, 1 to 80 in the order of their category ids. Stuff becomes background, 255 stays.

    Args:
        root: the folder.
        split: name of the split, such as train2017.

    Raises:
        UserError: there are no images, or an image has no map.
    """

    classes = COCO_CLASSES

    def __init__(self, root: Path, split: str) -> None:
        self.root = root
        images, maps = image_folder(root, split), map_folder(root, split)
        if images is None or maps is None:
            raise UserError(f"{root}: no images or no pixel maps of {split}; expected the folders of COCO-Stuff")
        self._images = images_below(images)
        if not self._images:
            raise UserError(f"{images}: holds no image; expected the images of {split}")
        names = [bare(PurePosixPath(path.relative_to(images))) for path in self._images]
        self.names = [str(name) for name in names]
        find = Finder([maps], MASK_EXTENSIONS)
        found = [find(name) for name in names]
        self._maps = [file for file in found if file is not None]
        missing = [name for name, file in zip(names, found, strict=True) if file is None]
        if missing:
            raise UserError(
                f"{maps / missing[0]}.png: no such pixel map ({len(missing)} of {len(names)} images have none; looked "
                f"for {find.sought(missing[0])}); unpack all of COCO-Stuff's maps"
            )

    def image(self, index: int) -> Image.Image:
        return read_image(self._images[index])

    def mask(self, index: int) -> Image.Image:
        return Image.fromarray(TABLE[np.asarray(read_mask(self._maps[index], self._images[index]))])

    def has_mask(self, index: int) -> bool:
        return True

    def class_ids(self, index: int) -> frozenset[int]:
        file, values = self._maps[index], self._scanned[index]
        if values is None:
            values = mask_ids(file)  # raises the error that says what is wrong with the file
        if unknown := unknown_values(values):
            raise UserError(
                f"{file}: holds the values {unknown}, which COCO-Stuff's maps never do; "
                f"`wilson data check {self.root}` says what the likely cause is"
            )
        return frozenset(TABLE[sorted(values)].tolist()) - {BACKGROUND}

    def files(self, index: int) -> tuple[Path, ...]:
        return self._images[index], self._maps[index]

    @cached_property
    def _scanned(self) -> list[frozenset[int] | None]:
        return scan(self._maps)


def open_coco(root: Path, split: str) -> ImageSource:
    """Open one split of a folder in COCO's layout, with its pixel maps if there are any, else with its instances."""
    known = coco_splits(root)
    if split not in known:
        raise UserError(f"{root}: no split '{split}' in COCO's layout; the folder has {', '.join(known)}")
    if map_folder(root, split) is not None:
        return StuffMaps(root, split)
    from wilson.data.sources.coco_instances import Instances

    folder = image_folder(root, split)
    assert folder is not None
    return Instances(root / INSTANCES.format(split), folder)


def coco_splits(root: Path) -> list[str]:
    """Names of the splits with images and annotations in COCO's layout; empty for a folder in VOC's layout.

    Raises:
        UserError: the folder has such splits, but also the classes.txt of VOC's layout without that layout's lists.
    """
    if (root / LISTS).is_dir():
        return []
    maps = [path.name for folder in MAPS for path in (root / folder).glob("*") if path.is_dir()]
    instances = [path.stem.removeprefix("instances_") for path in root.glob(INSTANCES.format("*"))]
    named = {split for split in (*maps, *instances) if is_data(PurePath(split))}
    found = sorted(split for split in named if image_folder(root, split) is not None)
    if found and (root / CLASSES).is_file():
        raise UserError(
            f"{root}: has COCO's folders ({', '.join(found)}), where COCO or the JSON names the classes, and {CLASSES} "
            f"of VOC's layout; take {CLASSES} away, or add VOC's lists in {LISTS}"
        )
    return found


def image_folder(root: Path, split: str) -> Path | None:
    """The folder of a split's images."""
    return next((folder for name in IMAGES if (folder := root / name / split).is_dir()), None)


def map_folder(root: Path, split: str) -> Path | None:
    """The folder of a split's pixel maps."""
    return next((folder for name in MAPS if (folder := root / name / split).is_dir()), None)


def unknown_values(values: frozenset[int]) -> list[int]:
    """Values that COCO-Stuff's maps never hold."""
    return sorted(value for value in values if value in UNUSED or value > LAST)

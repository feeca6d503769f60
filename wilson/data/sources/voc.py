"""Data sets in the folder layout of Pascal VOC."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL.Image import Image

from wilson.config.masks import BACKGROUND, VOID
from wilson.data.files import EXTENSIONS, find_image, inside, read_image, read_lines, read_mask
from wilson.data.names import VOC_CLASSES, named
from wilson.data.scan import mask_ids, scan
from wilson.data.sources.base import ImageSource
from wilson.errors import UserError

IMAGES = "JPEGImages"
MASKS = ("SegmentationClassAug", "SegmentationClass")  # the first one that is there
LISTS = PurePosixPath("ImageSets", "Segmentation")
LABELS = "image_labels"
CLASSES = "classes.txt"


class VOCFolder(ImageSource):
    """One split of a folder in the VOC layout.

    `JPEGImages` holds the images, `SegmentationClassAug` or `SegmentationClass` the masks.
    `ImageSets/Segmentation/<split>.txt` lists the split: each line is an image name, or the paths of an image and its
    mask, relative to the folder. `classes.txt` names the classes by mask id, one per line, background first; without it
    they are VOC's. `ImageSets/Segmentation/image_labels.txt` gives the classes of images without masks: each line is an
    image name and the ids or names of its classes.

    Args:
        root: the folder.
        split: name of the list.

    Raises:
        UserError: the folder or the list is missing or malformed, an image has no file, or an image has neither a mask
            nor labels.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        self.root = Path(root)
        self.classes = read_classes(self.root)
        entries = [read_line(self.root, split, line) for line in read_list(self.root, split)]
        if not entries:
            raise UserError(f"{list_file(self.root, split)}: lists no image; expected one name per line")
        repeated, times = Counter(entry.name for entry in entries).most_common(1)[0]
        if times > 1:
            raise UserError(f"{list_file(self.root, split)}: lists '{repeated}' {times} times; list each image once")
        missing = [entry.image for entry in entries if not entry.image.is_file()]
        if missing:
            raise UserError(
                f"{missing[0]}: no such image, named in {list_file(self.root, split)} ({len(missing)} of "
                f"{len(entries)} images are missing); `wilson data check {self.root}` lists all"
            )
        self.names = [entry.name for entry in entries]
        self._images = [entry.image for entry in entries]
        self._masks = [entry.mask if entry.mask.is_file() else None for entry in entries]
        self._labels = {} if all(self._masks) else read_image_labels(self.root, self.classes)
        without_mask = [name for name, mask in zip(self.names, self._masks, strict=True) if mask is None]
        unlabelled = [name for name in without_mask if name not in self._labels]
        if unlabelled:
            raise UserError(
                f"image '{unlabelled[0]}' of {list_file(self.root, split)} has neither a mask nor a line in "
                f"{list_file(self.root, LABELS)} ({len(unlabelled)} of {len(entries)} have neither); add one of them"
            )

    def image(self, index: int) -> Image:
        return read_image(self._images[index])

    def mask(self, index: int) -> Image | None:
        path = self._masks[index]
        return None if path is None else read_mask(path)

    def has_mask(self, index: int) -> bool:
        return self._masks[index] is not None

    def class_ids(self, index: int) -> frozenset[int]:
        mask, name = self._masks[index], self.names[index]
        if mask is None:
            return self._labels[name]
        ids = self._scanned[mask]
        if ids is None:
            ids = mask_ids(mask)  # raises the error that says what is wrong with the file
        if unknown := sorted(class_id for class_id in ids if class_id >= len(self.classes)):
            raise UserError(
                f"{mask}: holds the ids {unknown}, but the classes are 0 to {len(self.classes) - 1}; "
                f"`wilson data check {self.root}` says what the likely cause is"
            )
        return ids - {BACKGROUND}

    def files(self, index: int) -> tuple[Path, ...]:
        mask = self._masks[index]
        return (self._images[index],) if mask is None else (self._images[index], mask)

    @cached_property
    def _scanned(self) -> dict[Path, frozenset[int] | None]:
        masks = [mask for mask in self._masks if mask is not None]
        return dict(zip(masks, scan(masks), strict=True)) if masks else {}


@dataclass(frozen=True)
class Entry:
    """One line of a list: an image's name, its file, and the path of its mask, which may not exist."""

    name: str
    image: Path
    mask: Path


def list_file(root: Path, name: str) -> Path:
    """Path of a list."""
    return root / LISTS / f"{name}.txt"


def splits(root: Path) -> list[str]:
    """Names of the lists in a folder; UserError if there is no such folder."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected a data set in the VOC layout, with {IMAGES} and {LISTS}")
    return sorted(path.stem for path in (root / LISTS).glob("*.txt") if path.stem != LABELS)


def mask_folder(root: Path) -> Path:
    """The folder of the masks: the first of `MASKS` that exists, else the last."""
    folders = [root / name for name in MASKS]
    return next((folder for folder in folders if folder.is_dir()), folders[-1])


def read_classes(root: Path) -> tuple[str, ...]:
    """Read the class names by mask id from `classes.txt`, VOC's without it; UserError if the file is malformed."""
    path = root / CLASSES
    if not path.is_file():
        return VOC_CLASSES
    names = tuple(line.strip() for line in read_lines(path))
    if names[:1] != ("background",) or len(names) < 2:
        raise UserError(
            f"{path}: expected one class name per line in the order of the mask ids, 'background' first; "
            f"got {len(names)} lines, the first '{names[0] if names else ''}'"
        )
    if len(names) > VOID:
        raise UserError(f"{path}: expected at most {VOID} classes (the id {VOID} means no label), got {len(names)}")
    for line, name in enumerate(names, 1):
        if not name or name in names[: line - 1]:
            wrong = f"repeats '{name}'" if name else "is empty"
            raise UserError(f"{path}: line {line} {wrong}; each mask id needs a name of its own")
    return names


def read_list(root: Path, split: str) -> list[str]:
    """Read the lines of a list, without empty ones; UserError if it is missing."""
    names = splits(root)
    if split not in names:
        raise UserError(f"{list_file(root, split)}: no such list; the folder has {', '.join(names) or 'none'}")
    return [line.strip() for line in read_lines(list_file(root, split)) if line.strip()]


def read_line(root: Path, split: str, line: str) -> Entry:
    """The files that a line of a list stands for; UserError if it is malformed or leads out of the folder."""
    words = line.split()
    where = f"{list_file(root, split)}: '{line}'"
    if len(words) == 1:
        name = inside(line, where)
        image = find_image([root / IMAGES], name) or root / IMAGES / f"{name}{EXTENSIONS[0]}"
        return Entry(str(name), image, mask_folder(root) / f"{name}.png")
    if len(words) == 2:
        path, mask = inside(words[0], where), inside(words[1], where)
        below = PurePosixPath(*path.parts[1:] or path.parts)  # the name does not repeat the folder of the images
        return Entry(str(below.with_suffix("")), root / path, root / mask)
    raise UserError(f"{where}: expected an image name without spaces, or the paths of an image and its mask")


def read_image_labels(root: Path, classes: tuple[str, ...]) -> dict[str, frozenset[int]]:
    """Read the classes (mask ids) of each image in `image_labels.txt`; empty if there is no such file.

    Raises:
        UserError: a line names an unknown class, or an image has two lines.
    """
    path = list_file(root, LABELS)
    labels: dict[str, frozenset[int]] = {}
    for number, line in enumerate(read_lines(path) if path.is_file() else [], 1):
        name, *words = line.split() or [""]
        if not name:
            continue
        if name in labels:
            raise UserError(f"{path}: line {number}: image '{name}' has a line already; put all its classes in one")
        labels[name] = frozenset(named(word, classes, f"{path}: line {number}") for word in words) - {BACKGROUND}
    return labels

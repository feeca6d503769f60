"""Data sets in the folder layout of Pascal VOC."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath

from PIL.Image import Image

from wilson.config.masks import BACKGROUND, VOID
from wilson.data.files import EXTENSIONS, MASK_EXTENSIONS, Finder, bare, inside, is_data, named_data, posix, read_lines
from wilson.data.images import read_image, read_mask
from wilson.data.names import VOC_CLASSES, check_names, named
from wilson.data.scan import mask_ids, scan
from wilson.data.sources.base import ImageSource
from wilson.errors import UserError

IMAGES = "JPEGImages"
MASKS = ("SegmentationClassAug", "SegmentationClass")  # the first one that has the mask
LISTS = PurePosixPath("ImageSets", "Segmentation")
LABELS = "image_labels"
CLASSES = "classes.txt"


class VOCFolder(ImageSource):
    """One split of a folder in the VOC layout.

    `JPEGImages` holds the images, `SegmentationClassAug` or `SegmentationClass` the masks; each image has the first
    of its name. `ImageSets/Segmentation/<split>.txt` lists the split: each line is an image name, or the paths of an
    image and its mask, relative to the folder. `classes.txt` names the classes by mask id, one per line, background
    first; without it they are VOC's. `ImageSets/Segmentation/image_labels.txt` gives the classes of images without
    masks: each line is an image name and the ids or names of its classes.

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
        lists = Lists(self.root)
        entries = [lists.entry(split, line) for line in read_list(self.root, split)]
        if not entries:
            raise UserError(f"{list_file(self.root, split)}: lists no image; expected one name per line")
        repeated, times = Counter(entry.name for entry in entries).most_common(1)[0]
        if times > 1:
            raise UserError(f"{list_file(self.root, split)}: lists '{repeated}' {times} times; list each image once")
        missing = [entry for entry in entries if not entry.image.is_file()]
        if missing:
            raise UserError(
                f"{missing[0].image}: {missing[0].no_image}, named in {list_file(self.root, split)} ({len(missing)} of "
                f"{len(entries)} images are missing); `wilson data check {self.root}` lists all"
            )
        self.names = [entry.name for entry in entries]
        self._images = [entry.image for entry in entries]
        self._masks = [entry.mask if entry.mask.is_file() else None for entry in entries]
        self._labels = {} if all(self._masks) else read_image_labels(self.root, self.classes)
        without_mask = [entry for entry, mask in zip(entries, self._masks, strict=True) if mask is None]
        unlabelled = [entry for entry in without_mask if entry.name not in self._labels]
        if unlabelled:
            raise UserError(
                f"image '{unlabelled[0].name}' of {list_file(self.root, split)} has neither a mask nor a line in "
                f"{list_file(self.root, LABELS)} ({len(unlabelled)} of {len(entries)} have neither; looked for "
                f"{unlabelled[0].sought}); add one of them"
            )

    def image(self, index: int) -> Image:
        return read_image(self._images[index])

    def mask(self, index: int) -> Image | None:
        path = self._masks[index]
        return None if path is None else read_mask(path, self._images[index])

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
    """One line of a list: an image's name, its file, and its mask; both are where one would be if there is none."""

    name: str
    image: Path
    mask: Path
    sought: str = field(compare=False)  # as what, and where, the mask was looked for

    @property
    def no_image(self) -> str:
        """The end of an error about a missing image."""
        return f"no such image, nor one with another extension ({', '.join(EXTENSIONS)}, in any case)"


class Lists:
    """Finds the files that the lists of a folder name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._image, self._image_by_path = Finder([root / IMAGES]), Finder([root])
        folders = [folder for name in MASKS if (folder := root / name).is_dir()] or [root / MASKS[-1]]
        self._mask, self._mask_by_path = Finder(folders, MASK_EXTENSIONS), Finder([root], MASK_EXTENSIONS)

    def entry(self, split: str, line: str) -> Entry:
        """The files that a line of a list stands for; UserError if it is malformed or leads out of the folder."""
        words = line.split()
        where = f"{list_file(self.root, split)}: '{line}'"
        if len(words) == 1:
            listed = inside(line, where)
            below = PurePosixPath(*listed.parts[1:]) if listed.parts[0] == IMAGES and listed.parts[1:] else listed
            name = bare(below)
            mask = self._mask.folders[0] / f"{name}{MASK_EXTENSIONS[0]}"
            image = self.root / IMAGES / f"{name}{EXTENSIONS[0]}"
            return Entry(str(name), self._image(below) or image, self._mask(name) or mask, self._mask.sought(name))
        if len(words) == 2:
            path, ids = inside(words[0], where), inside(words[1], where)
            below = PurePosixPath(*path.parts[1:] or path.parts)  # the name does not repeat the folder of the images
            image, mask = self._image_by_path(path) or self.root / path, self._mask_by_path(ids) or self.root / ids
            return Entry(str(bare(below)), image, mask, self._mask_by_path.sought(ids))
        raise UserError(f"{where}: expected an image name without spaces, or the paths of an image and its mask")


def list_file(root: Path, name: str) -> Path:
    """Path of a list."""
    return root / LISTS / f"{name}.txt"


def splits(root: Path) -> list[str]:
    """Names of the lists in a folder; UserError if there is no such folder."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; expected a data set in the VOC layout, with {IMAGES} and {LISTS}")
    lists = (path for path in (root / LISTS).glob("*.txt") if is_data(PurePath(path.name)))
    return sorted(path.stem for path in lists if path.stem != LABELS)


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
    check_names(names, lambda position: f"{path}: line {position + 1}")
    return names


def classes_are_vocs(root: Path) -> bool:
    """Whether a folder in VOC's layout names no classes, so that they are VOC's."""
    return (root / LISTS).is_dir() and not (root / CLASSES).is_file()


def read_list(root: Path, split: str) -> list[str]:
    """Read the lines of a list, without empty ones and side files of a system; UserError if it is missing."""
    names = splits(root)
    if split not in names:
        raise UserError(f"{list_file(root, split)}: no such list; the folder has {', '.join(names) or 'none'}")
    return named_data(read_lines(list_file(root, split)))


def read_image_labels(root: Path, classes: tuple[str, ...]) -> dict[str, frozenset[int]]:
    """Read the classes (mask ids) of each image in `image_labels.txt`; empty if there is no such file.

    Raises:
        UserError: a line names an unknown class, or an image has two lines.
    """
    path = list_file(root, LABELS)
    labels: dict[str, frozenset[int]] = {}
    for number, line in enumerate(read_lines(path) if path.is_file() else [], 1):
        if not named_data([line]):
            continue
        listed, *words = line.split()
        name = str(bare(posix(listed)))
        if name in labels:
            raise UserError(f"{path}: line {number}: image '{name}' has a line already; put all its classes in one")
        labels[name] = frozenset(named(word, classes, f"{path}: line {number}") for word in words) - {BACKGROUND}
    return labels

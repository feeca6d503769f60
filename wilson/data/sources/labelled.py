"""Images with labels but without masks: from a folder for each class, a CSV file or a list, or with no class at all.

A folder: `horse/one.jpg`, `sheep/two.jpg`; class names or mask ids name the folders. An image that lies in several of
them, as equal files, has the classes of all.
A CSV file: the columns `image,class` with a row for each class of an image, or `image,horse,sheep` with a 0 or 1 each.
A text file: lines as in `image_labels.txt`, `name id id ...`.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path, PurePath, PurePosixPath

from PIL import Image

from wilson.config.masks import BACKGROUND
from wilson.data.files import Finder, bare, images_below, inside, is_data, named_data, posix, read_lines
from wilson.data.images import read_image
from wilson.data.names import named
from wilson.data.sources.base import ImageSource
from wilson.errors import UserError


class Labelled(ImageSource):
    """Images with the classes that they hold, without masks.

    Args:
        images: name, file and mask ids of the classes of each image.
        classes: class names by mask id, background first.
    """

    def __init__(self, images: Sequence[tuple[str, Path, frozenset[int]]], classes: Sequence[str]) -> None:
        self.classes, self._entries = tuple(classes), list(images)
        self.names = [name for name, _, _ in images]

    def image(self, index: int) -> Image.Image:
        return read_image(self._entries[index][1])

    def mask(self, index: int) -> None:
        return None

    def has_mask(self, index: int) -> bool:
        return False

    def class_ids(self, index: int) -> frozenset[int]:
        return self._entries[index][2]

    def files(self, index: int) -> tuple[Path, ...]:
        return (self._entries[index][1],)

    def without(self, files: Set[Path]) -> Labelled:
        """The images whose files are not among these resolved paths."""
        return Labelled([entry for entry in self._entries if entry[1].resolve() not in files], self.classes)

    def divided(self) -> tuple[Labelled, Labelled]:
        """The images that hold a class, and those that hold none."""
        some, none = [entry for entry in self._entries if entry[2]], [entry for entry in self._entries if not entry[2]]
        return Labelled(some, self.classes), Labelled(none, self.classes)

    def __add__(self, other: Labelled) -> Labelled:
        return Labelled(self._entries + other._entries, self.classes)


def open_labelled(path: str | Path, classes: Sequence[str], folders: Sequence[Path] = ()) -> Labelled:
    """Open images with labels: a folder for each class, a CSV file or a list.

    An image is named by its path from the folder, or from the nearest of the file's folder and `folders`. The name has
    no extension unless two images would then have the same name.

    Args:
        path: the folder or the file.
        classes: class names by mask id, background first.
        folders: searched for the images that a file names, after the file's own folder.

    Raises:
        UserError: there are no images, a class is unknown, or an image is missing or lies outside of the folders.
    """
    path = Path(path)
    folders = [path] if path.is_dir() else [path.parent, *folders]
    if path.is_dir():
        held = _same(_by_folder(path, classes))
    elif path.is_file():
        read = _rows if path.suffix.lower() == ".csv" else _lines
        find, labels = Finder(folders), dict[Path, set[int]]()
        for where, name, ids in read(path, classes):
            listed = inside(name, f"{where}: '{name}'")
            image = find(listed)
            if image is None:
                raise UserError(f"{where}: no image '{name}'; looked for {find.sought(listed)}")
            labels.setdefault(image, set()).update(ids)
        held = {image: frozenset(ids) - {BACKGROUND} for image, ids in labels.items()}
    else:
        raise UserError(f"{path}: no such folder or file; expected a folder for each class, a .csv or a list of labels")
    if not held:
        raise UserError(f"{path}: names no image; expected a folder for each class, a .csv or a list of labels")
    return Labelled(list(zip(_names(held, folders), held, held.values(), strict=True)), classes)


def open_folders(folders: Mapping[Path, int], classes: Sequence[str]) -> Labelled:
    """Open the images of some folders, each of which holds those of one class.

    Args:
        folders: the mask id of each folder's class.
        classes: class names by mask id, background first.

    Raises:
        UserError: a folder holds no image.
    """
    pairs = [(image, class_id) for folder, class_id in folders.items() for image in images_below(folder)]
    for folder, class_id in folders.items():
        if class_id not in {held for _, held in pairs}:
            raise UserError(f"{folder}: {_why(folder)}; expected a folder of photographs of {classes[class_id]}")
    held = _same(pairs)
    return Labelled(list(zip(_names(held, [f.parent for f in folders]), held, held.values(), strict=True)), classes)


def _why(folder: Path) -> str:
    return "no images there" if folder.is_dir() else "no such folder"


def open_negatives(folder: str | Path, classes: Sequence[str]) -> Labelled:
    """Open all images in a folder and its subfolders as images without a class; UserError if there are none."""
    folder = Path(folder)
    found = images_below(folder)
    if not found:
        raise UserError(f"{folder}: {_why(folder)}; expected a folder of images that do not hold the new classes")
    names = _names(found, [folder])
    return Labelled([(name, file, frozenset()) for name, file in zip(names, found, strict=True)], classes)


def among(files: Iterable[Path], others: Iterable[Path]) -> set[Path]:
    """Those of the files, resolved, that are some of the others or copies of them."""
    sizes: defaultdict[int, list[Path]] = defaultdict(list)
    for other in others:
        sizes[other.stat().st_size].append(other)
    pairs = [(file, sizes[file.stat().st_size]) for file in files]  # only files of one size can be equal
    held = {_content(other) for other in {other for _, rivals in pairs for other in rivals}}
    return {file.resolve() for file, rivals in pairs if rivals and _content(file) in held}


def _content(file: Path) -> bytes:
    return hashlib.blake2b(file.read_bytes()).digest()


def _names(files: Iterable[Path], folders: Sequence[Path]) -> list[str]:
    """Paths from the nearest folder, without the extension unless another image would then have the same name."""

    def nearest(file: Path) -> Path:
        return min((file.relative_to(f) for f in folders if file.is_relative_to(f)), key=lambda path: len(path.parts))

    pairs = [(bare(PurePosixPath(path)).as_posix(), path.as_posix()) for path in map(nearest, files)]
    times = Counter(name for pair in pairs for name in pair)
    return [short if times[short] == 1 else full for short, full in pairs]


def _by_folder(root: Path, classes: Sequence[str]) -> Iterator[tuple[Path, int]]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and is_data(PurePath(path.name))):
        class_id = named(folder.name, classes, folder)
        yield from ((image, class_id) for image in images_below(folder))


def _same(labelled: Iterable[tuple[Path, int]]) -> dict[Path, frozenset[int]]:
    """Mask ids of each image; copies of one image in several folders are one image with the classes of all."""
    sizes: defaultdict[int, list[tuple[Path, int]]] = defaultdict(list)
    for image, class_id in labelled:
        sizes[image.stat().st_size].append((image, class_id))
    first: dict[object, Path] = {}
    held: dict[Path, set[int]] = {}
    for same_size in sizes.values():
        for image, class_id in same_size:
            # Only files of one size can be equal
            content = image if len(same_size) == 1 else _content(image)
            held.setdefault(first.setdefault(content, image), set()).add(class_id)
    return {image: frozenset(held[image]) - {BACKGROUND} for image in sorted(held)}


Label = tuple[str, str, list[int]]  # place in the file, name of the image, mask ids


def _lines(path: Path, classes: Sequence[str]) -> Iterator[Label]:
    for number, line in enumerate(read_lines(path), 1):
        if named_data([line]):
            name, *words = line.split()
            where = f"{path}: line {number}"
            yield where, name, [named(word, classes, where) for word in words]


def _rows(path: Path, classes: Sequence[str]) -> Iterator[Label]:
    rows = csv.reader(read_lines(path))
    header = [cell.strip() for cell in next(rows, [])]
    if header[:1] != ["image"] or len(header) < 2:
        raise UserError(
            f"{path}: expected the header 'image,class', or 'image' and names of classes, got '{','.join(header)}'"
        )
    columns = None if header == ["image", "class"] else [named(name, classes, path) for name in header[1:]]
    for row in rows:
        cells, where = [cell.strip() for cell in row], f"{path}: line {rows.line_num}"
        if not any(cells) or not is_data(posix(cells[0])):
            continue
        if len(cells) != len(header):
            raise UserError(f"{where}: expected {len(header)} cells, as in the header, got {len(cells)}")
        name, *values = cells
        if columns is None:
            yield where, name, [named(values[0], classes, where)]
        elif wrong := set(values) - {"0", "1"}:
            raise UserError(f"{where}: expected 0 or 1 for each class, got '{min(wrong)}'")
        else:
            yield where, name, [class_id for class_id, value in zip(columns, values, strict=True) if value == "1"]

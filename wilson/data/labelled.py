"""Images that carry labels alone: a folder for each class, a CSV file, a list of labels, or no class at all.

A folder: `horse/one.jpg`, `sheep/two.jpg`; the folders are named by class, or by mask id.
A CSV file: the columns `image,class`, a row for each class of an image; or `image,horse,sheep`, a 0 or 1 for each.
A text file: `image_labels.txt`'s lines, `name id id ...`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from wilson.data.files import find_image, images_below, inside, read_image, read_lines
from wilson.data.names import named
from wilson.data.sources import BACKGROUND, ImageSource
from wilson.errors import UserError


class Labelled(ImageSource):
    """Images with the classes they hold, without masks.

    Args:
        images: each image's file, and mask ids of its classes.
        classes: class names by mask id, background first.
    """

    def __init__(self, images: Mapping[Path, frozenset[int]], classes: Sequence[str]) -> None:
        self.classes, self._images, self._held = tuple(classes), list(images), list(images.values())
        self.names = [str(path) for path in images]

    def image(self, index: int) -> Image.Image:
        return read_image(self._images[index])

    def mask(self, index: int) -> None:
        return None

    def has_mask(self, index: int) -> bool:
        return False

    def class_ids(self, index: int) -> frozenset[int]:
        return self._held[index]

    def files(self, index: int) -> tuple[Path, ...]:
        return (self._images[index],)


def open_labelled(path: str | Path, classes: Sequence[str], folders: Sequence[Path] = ()) -> Labelled:
    """Images with labels, from a folder for each class, a CSV file or a list.

    Args:
        path: the folder or the file.
        classes: class names by mask id, background first.
        folders: where the images that a file names are looked for, after the file's own folder.

    Raises:
        UserError: there is nothing, a class is unknown, an image is missing or named from outside of the folders.
    """
    path = Path(path)
    if path.is_dir():
        held = {image: frozenset({class_id}) - {BACKGROUND} for image, class_id in _by_folder(path, classes)}
    elif path.is_file():
        read = _rows if path.suffix.lower() == ".csv" else _lines
        labels: dict[Path, set[int]] = {}
        for where, name, ids in read(path, classes):
            image = find_image([path.parent, *folders], inside(name, f"{where}: '{name}'"))
            if image is None:
                places = ", ".join(map(str, [path.parent, *folders]))
                raise UserError(f"{where}: no image '{name}' in {places}")
            labels.setdefault(image, set()).update(ids)
        held = {image: frozenset(ids) - {BACKGROUND} for image, ids in labels.items()}
    else:
        raise UserError(f"{path}: no such folder or file; expected a folder for each class, a .csv or a list of labels")
    if not held:
        raise UserError(f"{path}: names no image; expected a folder for each class, a .csv or a list of labels")
    return Labelled(held, classes)


def open_negatives(folder: str | Path, classes: Sequence[str]) -> Labelled:
    """All images in a folder and the folders in it, which hold no class; UserError if there is none."""
    folder = Path(folder)
    found = images_below(folder)
    if not found:
        raise UserError(f"{folder}: no images there; expected a folder of images that do not hold the new classes")
    return Labelled(dict.fromkeys(found, frozenset()), classes)


def _by_folder(root: Path, classes: Sequence[str]) -> Iterator[tuple[Path, int]]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        class_id = named(folder.name, classes, folder)
        yield from ((image, class_id) for image in images_below(folder))


Label = tuple[str, str, list[int]]  # where it stands, image, mask ids


def _lines(path: Path, classes: Sequence[str]) -> Iterator[Label]:
    for number, line in enumerate(read_lines(path), 1):
        name, *words = line.split() or [""]
        if name:
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
        if not any(cells):
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

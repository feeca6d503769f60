"""Read a file of instances in COCO's JSON format, and check what everything else relies on."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from wilson.config.masks import BACKGROUND, VOID
from wilson.data.names import check_names
from wilson.errors import UserError, first_line


class Picture(NamedTuple):
    """An image of the file."""

    id: str
    file: str
    size: tuple[int, int] | None  # width, height; None where the file does not say


class Document:
    """The images, annotations and categories of a file of instances.

    Ids are compared as text, so 5, 5.0 and "5" are the same. Annotations of images that the file does not list are
    passed over. A category named background is the background.

    Args:
        file: the JSON.

    Attributes:
        pictures: the images, by file name.
        annotations: of each image, as the file has them.
        classes: names by mask id: background, then the categories in the order of their ids.

    Raises:
        UserError: the file cannot be read, or lacks something; the text names the file, the image's id and the key.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file}: cannot be read as JSON: {first_line(error)}") from error
        self.classes, self._mask_ids = self._categories(self._entries(content, "categories"))
        pictures = [self._picture(entry) for entry in self._entries(content, "images")]
        if not pictures:
            raise UserError(f"{file}: 'images' is empty; expected at least one image")
        for key in ("id", "file"):
            self._unlike([getattr(picture, key) for picture in pictures], f"images with the {key}")
        self.pictures = sorted(pictures, key=lambda picture: picture.file)
        held: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in self._entries(content, "annotations"):
            held[identity(entry, "image_id", f"{file}: {_called(entry)}")].append(entry)
        self.annotations = [held[picture.id] for picture in self.pictures]

    def where(self, picture: Picture, annotation: dict[str, Any]) -> str:
        """The beginning of an error about an annotation."""
        return f"{self.file}: image id {picture.id} ({picture.file}), {_called(annotation)}"

    def mask_id(self, picture: Picture, annotation: dict[str, Any]) -> int:
        """The mask id of an annotation's category."""
        where = self.where(picture, annotation)
        category = identity(annotation, "category_id", where)
        if category not in self._mask_ids:
            raise UserError(f"{where}: 'category_id' is {category}, which 'categories' lacks; expected one of its ids")
        return self._mask_ids[category]

    def _entries(self, content: Any, key: str) -> list[dict[str, Any]]:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(
                f"{self.file}: expected COCO's JSON of instances, an object with lists of objects named 'images', "
                f"'annotations' and 'categories'; '{key}' is missing or none"
            )
        return entries

    def _categories(self, entries: list[dict[str, Any]]) -> tuple[tuple[str, ...], dict[str, int]]:
        ids = [identity(entry, "id", f"{self.file}: {_called(entry, 'category')}") for entry in entries]
        self._unlike(ids, "categories with the id")
        names: list[str] = []
        for entry in entries:
            name = entry.get("name")
            if not isinstance(name, (str, int)) or isinstance(name, bool):
                raise UserError(f"{self.file}: {_called(entry, 'category')}: 'name' is {name!r}; expected a name")
            names.append(str(name).strip())
        order = sorted(range(len(ids)), key=lambda i: (not ids[i].isdecimal(), ids[i].zfill(20), ids[i]))
        check_names([names[i] for i in order], lambda position: f"{self.file}: category id {ids[order[position]]}")
        background = [i for i in order if names[i].casefold() == "background"]
        things = [i for i in order if i not in background]
        if not 1 <= len(things) < VOID:
            raise UserError(f"{self.file}: expected 1 to {VOID - 1} categories besides background, got {len(things)}")
        mask_ids = {ids[i]: number for number, i in enumerate(things, 1)} | {ids[i]: BACKGROUND for i in background}
        return ("background", *(names[i] for i in things)), mask_ids

    def _picture(self, entry: dict[str, Any]) -> Picture:
        number = identity(entry, "id", f"{self.file}: an image")
        where = f"{self.file}: image id {number}"
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: 'file_name' is {name!r}; expected the path of an image")
        if entry.get("width") is None or entry.get("height") is None:
            return Picture(number, name, None)
        width, height = (count(entry[key], f"{where}: '{key}'", least=1) for key in ("width", "height"))
        return Picture(number, name, (width, height))

    def _unlike(self, values: list[str], what: str) -> None:
        seen: set[str] = set()
        for value in values:
            if value in seen:
                raise UserError(f"{self.file}: holds several {what} '{value}'; expected one")
            seen.add(value)


def identity(entry: dict[str, Any], key: str, where: str) -> str:
    """An id as text; UserError, which begins with `where`, if it is missing or neither a number nor text."""
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (int, str)) or isinstance(value, bool) or value == "":
        raise UserError(f"{where}: '{key}' is {'missing' if value is None else repr(value)}; expected an id")
    return str(value).strip()


def count(value: Any, where: str, *, least: int = 0) -> int:
    """A whole number, perhaps as text or 3.0; UserError, which begins with `where`, if it is none or under `least`."""
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
        if number.is_integer() and number >= least:
            return int(number)
    except (TypeError, ValueError):
        pass
    raise UserError(f"{where} is {value!r}; expected a whole number of at least {least}")


def _called(entry: dict[str, Any], what: str = "annotation") -> str:
    return f"{what} id {entry['id']}" if "id" in entry else f"{what} without an id"

"""Which files are images, and how the names of lists lead to them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath, PurePosixPath

from wilson.errors import UserError

# Pillow's names of the formats, and their extensions; everything that reads or lists images goes by this table.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)
# Of masks: formats that keep ids as they are (what writes GIF numbers the colours anew); the first one wins.
MASK_EXTENSIONS = (*FORMATS["PNG"], *FORMATS["BMP"], *FORMATS["TIFF"])

# What systems and tools leave beside people's files, in lower case; so is everything that begins with a dot.
LEFT_BEHIND = frozenset(
    {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found"}
)


def is_data(path: PurePath) -> bool:
    """Whether a path, relative to the folder that is listed, is none of what systems and tools leave there."""
    return not any(
        part.lower() in LEFT_BEHIND or (part.startswith(".") and part not in (".", "..")) for part in path.parts
    )


def is_image(path: PurePath) -> bool:
    """Whether a path, relative to the folder that is listed, is named like an image."""
    return path.suffix.lower() in EXTENSIONS and is_data(path)


def images_below(folder: Path) -> list[Path]:
    """All image files in a folder and its subfolders, sorted by path."""
    return sorted(path for path in folder.rglob("*") if is_image(path.relative_to(folder)) and path.is_file())


def bare(name: PurePosixPath) -> PurePosixPath:
    """The name without the extension of an image."""
    return name.with_suffix("") if name.suffix.lower() in EXTENSIONS else name


class Finder:
    """Finds files by names as people list them: with an extension in any case, with another one, or without.

    Args:
        folders: where the names begin; the first that has a file wins.
        extensions: of the files, in lower case. Where a name has several files, the first extension wins.
    """

    def __init__(self, folders: Sequence[Path], extensions: Sequence[str] = EXTENSIONS) -> None:
        self.folders, self.extensions = list(folders), tuple(extensions)
        self._found: dict[Path, dict[str, Path]] = {}

    def __call__(self, name: PurePosixPath) -> Path | None:
        """The file of this name, or None."""
        for folder in self.folders:
            there = self._files((folder / name).parent)
            if (file := there.get(name.name) or there.get(bare(name).name)) is not None:
                return file
        return None

    def sought(self, name: PurePosixPath) -> str:
        """What was looked for, and where, for an error."""
        where = " or ".join(str(folder / bare(name)) for folder in self.folders)
        return f"{where} with {', '.join(self.extensions)} in any case"

    def _files(self, folder: Path) -> dict[str, Path]:
        """The files of a folder by name, and by name without extension; listed once."""
        if folder not in self._found:
            files = [path for path in _listed(folder) if path.suffix.lower() in (*self.extensions, "")]
            order = {extension: number for number, extension in enumerate((*self.extensions, ""))}
            files.sort(key=lambda path: (order[path.suffix.lower()], path.suffix.lower() != path.suffix))
            # From the last to the first, so that the first stays
            short = {bare(PurePosixPath(path.name)).name: path for path in reversed(files)}
            self._found[folder] = short | {path.name: path for path in files}
        return self._found[folder]


def _listed(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_file()]
    except (OSError, ValueError):  # there is none, or its name holds a null byte
        return []


def check_beside(names: Sequence[str], file: Callable[[str], Path], what: str, remedy: str) -> None:
    """Check that each image has a file of its own in a folder beside the data set.

    Args:
        names: of the images.
        file: where the file of an image is expected.
        what: the file is, as in "saliency map".
        remedy: for missing files.

    Raises:
        UserError: an image has no file, or two images have the same name.
    """
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise UserError(f"{file(name)}: is the {what} of {times} images named '{name}'; rename one")
    missing = [name for name in names if not file(name).is_file()]
    if missing:
        raise UserError(
            f"{file(missing[0])}: no such {what} ({len(missing)} of {len(names)} images have none); {remedy}"
        )


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 text file; UserError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def named_data(lines: Iterable[str]) -> list[str]:
    """The lines of a list, without empty ones and those whose first word names no data, such as `.DS_Store`."""
    stripped = [line.strip() for line in lines]
    return [line for line in stripped if line and is_data(posix(line.split()[0]))]


def posix(text: str) -> PurePosixPath:
    """A path as written on any system: backslashes part folders, and `./` is the folder itself."""
    return PurePosixPath(os.path.normpath(text.replace("\\", "/").lstrip("/")))


def inside(text: str, where: str) -> PurePosixPath:
    """Turn a path that a list names into one relative to the data set's folder; UserError if it leads out of it."""
    # Judged by its text alone, because a folder of the data set may be a link to another disk.
    path = posix(text)
    if path.parts[:1] in ((), ("..",)):
        raise UserError(f"{where}: leads out of the data set's folder; paths and names must stay inside")
    return path

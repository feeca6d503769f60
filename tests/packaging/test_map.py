"""The map in docs/design.md and the folders say the same: what is named exists, and no module is left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HELD = ("wilson", "kernels", "csrc")  # every module below them is in the map
SUFFIXES = (".py", ".h", ".cpp", ".cu")


class Line(NamedTuple):
    """One line of the map: the folder it stands in, the files and folders it names, and what it says of them."""

    folder: Path
    names: list[str]
    text: str


def lines_of(text: str) -> Iterator[Line]:
    """The lines of the map: four spaces for each folder above, names, two spaces or more, words."""
    (block,) = re.findall(r"^## Map\n+```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    above: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        names, _, words = line.strip().partition("  ")
        del above[depth:]
        yield Line(Path(*above), names.split(), words.strip())
        above.append(names)


def modules_in(folder: Path) -> dict[str, Path]:
    """The modules of a folder by their names without suffix."""
    return {path.stem: path for path in folder.glob("*") if path.suffix in SUFFIXES}


def lists_of(folder: Path, words: str) -> Iterator[tuple[Path, list[str] | None]]:
    """What words say of a folder: the names of its modules, or None for a sentence that stands for all of them.

    Between semicolons stand a list of bare names, a list with commas after the name of a folder below
    (`common/: levels, tiles`), or a sentence.
    """
    for part in (part.strip() for part in words.split(";")):
        if below := re.fullmatch(r"(\w+)/: ([\w, ]+)", part):
            yield folder / below[1], below[2].split(", ")
            continue
        names = part.split()
        plain = all(re.fullmatch(r"[a-z_]+", name) for name in names) and set(names) & set(modules_in(folder))
        yield folder, names if plain else None


def faults(root: Path, text: str) -> list[str]:
    """Where the map and the folders differ."""
    found: list[str] = []
    known: set[Path] = set()
    for folder, names, words in lines_of(text):
        for path in (root / folder / name for name in names):
            if not path.exists():
                found.append(f"{path.relative_to(root)} is named and not there")
            known.add(path)
        if not words or not names[0].endswith("/"):
            continue
        for place, listed in lists_of(root / folder / names[0], words):
            modules = modules_in(place)
            known |= {place, *(path for name, path in modules.items() if listed is None or name in listed)}
            missing = [name for name in listed or [] if name not in modules]
            found += [f"{place.relative_to(root)}/{name} is named and not there" for name in missing]
    for path in (path for held in HELD for path in sorted((root / held).rglob("*")) if path.suffix in SUFFIXES):
        if path.parent not in known or (path not in known and path.name != "__init__.py"):
            found.append(f"{path.relative_to(root)} stands outside of the map")
    return found


def test_the_map_and_the_folders_are_the_same() -> None:
    assert faults(ROOT, (ROOT / "docs" / "design.md").read_text(encoding="utf-8")) == []

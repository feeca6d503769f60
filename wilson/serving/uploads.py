"""Photographs that people drop: images alone, of bounded size and number, under safe names."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path

from wilson.data.files import EXTENSIONS, FORMATS, is_image
from wilson.data.images import read_image
from wilson.errors import UserError
from wilson.pictures.inline import url

LARGEST, MOST = 50 * 2**20, 500  # bytes of a photograph, and photographs of a kind
THUMBNAIL, SHOWN, NAMED = 96, 60, 3  # pixels; thumbnails on the page; refused files that are named


def fault(file: Path) -> str:
    """What is wrong with a file, which is named without its folder; empty if it is a photograph."""
    if file.suffix.lower() not in EXTENSIONS:
        return f"{file.name} is no image of a known format ({', '.join(FORMATS)})"
    if file.stat().st_size > LARGEST:
        return f"{file.name} is larger than {LARGEST // 2**20} MB"
    try:
        read_image(file)
    except UserError as error:
        return str(error).replace(str(file), file.name)
    return ""


def sifted(dropped: Sequence[str] | None) -> tuple[list[Path], list[str]]:
    """Those that are photographs, and what is wrong with each of the others."""
    faults = {Path(file): fault(Path(file)) for file in dropped or ()}
    return [file for file, wrong in faults.items() if not wrong], [wrong for wrong in faults.values() if wrong]


def left_out(wrong: Sequence[str]) -> str:
    """What was left out, as HTML."""
    more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    return said(f"Left out: {'; '.join(wrong[:NAMED])}{more}.") if wrong else ""


def said(text: str, kind: str = "said") -> str:
    """A sentence beside a field, as HTML."""
    return f'<p role="status" class="{kind}">{escape(text)}</p>'


class Pile:
    """Photographs of one kind in a folder, each once, with thumbnails beside them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._thumbnails = folder, folder / ".thumbnails"  # a name that no list of images holds

    def files(self) -> list[Path]:
        """The photographs, by name."""
        return sorted(path for path in self.folder.glob("*") if is_image(Path(path.name)))

    def take(self, dropped: Sequence[str] | None) -> list[str]:
        """Keep photographs; returns what is wrong with the others."""
        good, wrong = sifted(dropped)
        self._thumbnails.mkdir(parents=True, exist_ok=True)
        for file in good:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            if any(self.folder.glob(f"*-{digest}.*")):
                wrong.append(f"{file.name} is there already")
            elif len(self.files()) >= MOST:
                wrong.append(f"{file.name} is one too many, as {MOST} are taken")
            else:
                name = f"{re.sub('[^A-Za-z0-9]+', '-', file.stem)[:40]}-{digest}"
                small = read_image(file)
                small.thumbnail((THUMBNAIL, THUMBNAIL))
                small.save(self._thumbnails / f"{name}.jpg")
                shutil.move(file, self.folder / f"{name}{file.suffix.lower()}")
        return wrong

    def clear(self) -> None:
        """Take all of them away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def shown(self) -> str:
        """How many there are, and thumbnails, as HTML."""
        files = self.files()
        images = "".join(f'<img alt="" src="{url(self._thumbnails / f"{one.stem}.jpg")}">' for one in files[:SHOWN])
        more = f"<span>and {len(files) - SHOWN} more</span>" if len(files) > SHOWN else ""
        return f'<div class="pile"><b>{len(files)}</b><div>{images}{more}</div></div>' if files else ""

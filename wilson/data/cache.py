"""What reading all files of a data set found, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from wilson.atomic import replacing


def cached(what: str, files: Sequence[Path], find: Callable[[], list[Any]]) -> list[Any]:
    """One finding for each of some files, found once.

    It is kept under a hash of the files' contents in their order, so it follows the files when they are moved and is
    found again by any list of the same files; hashing takes about a twentieth of the time of decoding. A cache folder
    that cannot be read or written only costs the time of finding it again.

    Args:
        what: name and version of what is found: another one, another cache.
        files: the files; a missing one counts as empty.
        find: finds it: plain values for JSON, one for each file.

    Returns:
        What `find` returned, now or before.
    """
    file = cache_folder() / f"{_key(what, files)}.json"
    found = _load(file, len(files))
    if found is None:
        found = find()
        _store(file, found)
    return found


def cache_folder() -> Path:
    """The folder of the findings: wilson/scans in XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative XDG_CACHE_HOME is to be ignored (XDG base directory specification).
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "wilson", "scans")


def _key(what: str, files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(f"wilson {what}".encode(), digest_size=16)
    for path in files:
        content = hashlib.blake2b()
        with suppress(OSError):  # whoever reads the file will name it
            content.update(path.read_bytes())
        digest.update(content.digest())
    return digest.hexdigest()


def _load(file: Path, count: int) -> list[Any] | None:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, list) and len(found) == count else None


def _store(file: Path, found: list[Any]) -> None:
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:  # several runs may look at once
            temporary.write_text(json.dumps(found))

"""A cache in the user's cache folder, for what reading a whole data set found."""

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
    """Find something in each of several files, or take it from the cache.

    The key is a hash of the files' contents in their order. So an entry stays valid when the files are moved, and every
    list of the same files finds it again. Hashing takes about a twentieth of the time of decoding. If the cache folder
    cannot be read or written, `find` runs again.

    Args:
        what: name and version of what is found; each has entries of its own.
        files: the files; one that cannot be read counts as empty.
        find: returns one finding for each file, as plain values for JSON.

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
    """The folder of the cache: wilson/scans in XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative XDG_CACHE_HOME is to be ignored (XDG base directory specification).
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "wilson", "scans")


def _key(what: str, files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(f"wilson {what}".encode(), digest_size=16)
    for path in files:
        content = hashlib.blake2b()
        with suppress(OSError):  # reading the image or mask will report it
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
        with replacing(file) as temporary:  # several runs may scan at once
            temporary.write_text(json.dumps(found))

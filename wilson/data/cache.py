"""A cache in the user's cache folder, for what reading a whole data set found."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from wilson.atomic import SUFFIX, replacing

ABANDONED = 3600.0  # seconds after which a half-written entry is nobody's


def cached(what: str, files: Sequence[Path], find: Callable[[], list[Any]]) -> list[Any]:
    """Find something in each of several files, or take it from the cache.

    The key is a hash of the files' contents in their order. So an entry stays valid when the files are moved, and every
    list of the same files finds it again. Hashing takes about a twentieth of the time of decoding. If the cache folder
    cannot be read or written, or an entry does not have its checksum, `find` runs again.

    Args:
        what: name and version of what is found; each has entries of its own.
        files: the files; one that cannot be read counts as empty.
        find: returns one finding for each file, as plain values for JSON.

    Returns:
        What `find` returned, now or before.
    """
    folder, key = cache_folder(), _key(what, files)
    if folder is None:
        return find()
    found = _load(folder, key, len(files))
    if found is None:
        found = find()
        _store(folder, key, found)
    return found


def cache_folder() -> Path | None:
    """The folder of the cache: wilson/scans in XDG_CACHE_HOME, or in ~/.cache; None for a user without a home."""
    for base in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        # A relative XDG_CACHE_HOME is to be ignored (XDG base directory specification); an unknown home stays "~".
        if os.path.isabs(base):
            return Path(base, "wilson", "scans")
    return None


def _key(what: str, files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(f"wilson {what}".encode(), digest_size=16)
    for path in files:
        content = hashlib.blake2b()
        with suppress(OSError):  # reading the image or mask will report it
            content.update(path.read_bytes())
        digest.update(content.digest())
    return digest.hexdigest()


def _load(folder: Path, key: str, count: int) -> list[Any] | None:
    try:
        values = json.loads(_file(folder, key).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    found = values.get("found") if isinstance(values, dict) else None
    whole = isinstance(found, list) and len(found) == count and values.get("checksum") == _checksum(key, found)
    return found if whole else None


def _store(folder: Path, key: str, found: list[Any]) -> None:
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".*{SUFFIX}"):  # of a killed process; several runs may scan at once
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
        with replacing(_file(folder, key)) as temporary:
            temporary.write_text(json.dumps({"checksum": _checksum(key, found), "found": found}))


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.json"


def _checksum(key: str, found: list[Any]) -> str:
    return hashlib.blake2b(f"{key} {json.dumps(found)}".encode(), digest_size=16).hexdigest()

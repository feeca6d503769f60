"""Which classes each mask holds: read once, then kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from wilson.data.files import read_mask
from wilson.data.sources import BACKGROUND, VOID

FORMAT = 1  # raise it when what the scan finds, or how it is stored, changes


def scan(masks: Sequence[Path]) -> list[frozenset[int]]:
    """The mask ids in each mask, without background and 255.

    The result is cached under a hash of the masks' contents in their order, so it follows the masks when they are
    moved and is found again by any list of the same masks; hashing takes about a twentieth of the time of decoding.
    A cache folder that cannot be read or written only costs the time of another scan.

    Args:
        masks: files of 8-bit ids with one channel.

    Returns:
        One set for each mask.

    Raises:
        UserError: a mask cannot be read, or is not of 8-bit ids with one channel.
    """
    cache = cache_folder() / f"{_key(masks)}.json"
    found = _load(cache, len(masks))
    if found is None:
        found = [_class_ids(path) for path in tqdm(masks, desc="Scanning masks for classes", unit="mask")]
        _store(cache, found)
    return found


def cache_folder() -> Path:
    """The folder the scans are kept in: wilson/scans in XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative XDG_CACHE_HOME is to be ignored (XDG base directory specification).
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "wilson", "scans")


def _class_ids(path: Path) -> frozenset[int]:
    pixels = read_mask(path).histogram()
    return frozenset(class_id for class_id, count in enumerate(pixels) if count) - {BACKGROUND, VOID}


def _key(masks: Sequence[Path]) -> str:
    digest = hashlib.blake2b(f"wilson scan {FORMAT}".encode(), digest_size=16)
    for path in masks:
        with suppress(OSError):  # the scan will name the file
            digest.update(hashlib.blake2b(path.read_bytes()).digest())
    return digest.hexdigest()


def _load(cache: Path, count: int) -> list[frozenset[int]] | None:
    try:
        found = [frozenset(map(int, ids)) for ids in json.loads(cache.read_text())]
    except (OSError, ValueError, TypeError):
        return None
    return found if len(found) == count else None


def _store(cache: Path, found: list[frozenset[int]]) -> None:
    # Written whole or not at all: several runs may scan at once.
    temporary = cache.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps([sorted(ids) for ids in found]))
        os.replace(temporary, cache)
    with suppress(OSError):
        temporary.unlink(missing_ok=True)

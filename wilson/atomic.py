"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SUFFIX = ".part"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it replaces `path` when the block ends without an error.

    Readers see either the old file or the whole new one, whatever happens in between.

    Raises:
        OSError: the disk is full or the folder is gone; the error names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch.save hides the disk's error behind one of its own
        reason = error if isinstance(error, OSError) else error.__context__
        if isinstance(reason, OSError) and reason.errno is not None:
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files of killed processes from a folder and its subfolders."""
    for path in folder.rglob(f".*{SUFFIX}"):
        path.unlink(missing_ok=True)

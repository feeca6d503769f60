"""One process at a time writes into a folder: a lock of the kernel, which ends with its process however that dies."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wilson.errors import UserError

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextmanager
def alone(file: Path, patience: float = 0) -> Iterator[None]:
    """Hold a lock while the block runs.

    Linux hands such a lock on over NFS, so it counts on all machines. The file names its holder, and stays, empty, once
    the lock is released: to remove it is not safe where others open it. Forked processes do not share the lock.

    Args:
        file: the lock; its folder exists.
        patience: seconds to wait for another process, which may be about to end.

    Raises:
        UserError: another process holds the lock; the text names its host and process id.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file, timeout=patience, fallback_to_soft=False)  # soft locks outlive their process
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{file.parent} is in use by {holder(file) or 'another process'}; wait until it ends, or use another --out"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{file.parent}: this file system has no locks; start no other run in this folder", flush=True)
        yield
        return
    try:
        _write(file, f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        _write(file, "")
        lock.release()


def holder(file: Path) -> str:
    """The process that holds a lock, or held it when it was killed; empty if none is known."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()[:200]
    except OSError:
        return ""


def _write(file: Path, text: str) -> None:
    # Never another file than the locked one; a full disk or a folder that is gone are not for the lock to tell.
    with suppress(OSError), file.open("r+", encoding="utf-8") as opened:
        opened.truncate()
        opened.write(text)

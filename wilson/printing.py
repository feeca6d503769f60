"""Text for terminals, which may hold the names of people's files."""

from __future__ import annotations

import os
import select
import sys
import unicodedata
from contextlib import suppress
from typing import TextIO

CLOSED = 141  # the status of a command whose reader, such as `head`, has seen enough: 128 and SIGPIPE's number


def printable(text: object) -> str:
    """The text on one line: what breaks lines, controls a terminal or is no UTF-8 stands there by its code."""
    return "".join(
        ascii(character)[1:-1] if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") else character
        for character in str(text)
    )


def forgive_characters() -> None:
    """Let the terminal show by its code what its encoding lacks, where it would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # another stream has been put in its place
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def readers_left() -> bool:
    """Whether nobody reads the output or the errors any more; what is still to be written there then goes nowhere."""
    return _reader_left(sys.stdout) | _reader_left(sys.stderr)


def _reader_left(stream: TextIO) -> bool:
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)
    except (OSError, ValueError):  # it is no file
        return False
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    return True

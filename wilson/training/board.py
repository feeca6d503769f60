"""The TensorBoard log of a step: a file for each process that trained it, in the order in which they did."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np

from wilson.run_folder import StepFolder

PAUSE = 30.0  # seconds between two writes to the disk, so that a long epoch can be watched


class Board:
    """Writes scalars and pictures to a new file in a step's folder; what is on the disk stays there if it is killed.

    TensorBoard reads the files of a folder in the order of their names, which begin with a time in seconds. Clocks are
    set back, and those of two machines differ. So the new name comes after the newest one there, whatever the time is.

    Args:
        folder: of the step.
        purge_step: iteration from which the older files do not count.

    Raises:
        OSError: the disk is full or the folder is gone, here and in every method; the error names the file.
    """

    def __init__(self, folder: StepFolder, purge_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self.path = Event, new_file(folder)
        self._records = RecordWriter(self)
        self._file = self.path.open("xb", buffering=0)
        self._waiting, self._written = bytearray(), time.monotonic()
        self._add(file_version="brain.Event:2", step=purge_step)
        self._add(session_log=SessionLog(status=SessionLog.START), step=purge_step)
        self.flush()

    def add_scalar(self, tag: str, value: float, iteration: int) -> None:
        """Add a number."""
        from torch.utils.tensorboard.summary import scalar

        self._add(summary=scalar(tag, value), step=iteration)

    def add_image(self, tag: str, pixels: np.ndarray, iteration: int) -> None:
        """Add a picture, uint8 (H, W, 3)."""
        from torch.utils.tensorboard.summary import image

        self._add(summary=image(tag, pixels, dataformats="HWC"), step=iteration)

    def write(self, data: bytes) -> None:
        """Take a part of a record; TensorBoard's RecordWriter calls this."""
        self._waiting += data

    def flush(self) -> None:
        """Write everything to the disk."""
        try:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._written = time.monotonic()

    def close(self) -> None:
        """Write everything to the disk, and close the file."""
        try:
            self.flush()
        finally:
            self._file.close()

    def _add(self, **parts: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **parts).SerializeToString())
        if time.monotonic() - self._written > PAUSE:
            self.flush()


class Silent:
    """Stands in for the board in processes that do not write one."""

    def add_scalar(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    add_image = flush = close = add_scalar


def new_file(folder: StepFolder) -> Path:
    """Where the next log of a step goes: TensorBoard's name for it, after all names that are there."""
    begun = [int(found[1]) for log in folder.logs() if (found := re.search(r"\.tfevents\.(\d+)\.", log.name))]
    second = max([int(time.time()), *(earlier + 1 for earlier in begun)])
    return folder.log(f"{second:010d}.{socket.gethostname()}.{os.getpid()}.0")

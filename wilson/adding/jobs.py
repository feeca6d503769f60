"""`wilson add` in a process of its own, one at a time. Its folder tells how it is, so it outlives who started it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wilson.atomic import replacing
from wilson.errors import UserError
from wilson.run_folder import RunFolder

State = Literal["running", "stopped", "failed", "done"]
PATIENCE = 10.0  # seconds that a stopped process has to end


@dataclass(frozen=True)
class Job:
    """One class that is added, or was, and its folder.

    Attributes:
        path: holds `photographs/`, copies of what was dropped, `run/`, what the process printed, and job.json.
        name: of the class.
        model: what it is added to, in words.
        command: of the process.
    """

    path: Path
    name: str
    model: str
    command: list[str]

    @classmethod
    def read(cls, path: Path) -> Job:
        """The job of a folder."""
        return cls(path, **json.loads((path / "job.json").read_text(encoding="utf-8")))

    @property
    def run(self) -> RunFolder:
        """What `wilson add` writes."""
        return RunFolder(self.path / "run")

    @property
    def written(self) -> Path | None:
        """The new model; None before it is complete."""
        if not (self.run.added.is_file() and self.run.report.is_file()):
            return None
        return self.run.path / json.loads(self.run.added.read_text(encoding="utf-8"))["written"]

    def reason(self) -> str:
        """Why it failed, in one line; empty if it was stopped."""
        lines = (self.path / "errors.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        told = [line.removeprefix("wilson: ") for line in lines if line.startswith("wilson: ")]
        return told[-1] if told else lines[-1] if any(line.startswith("Traceback") for line in lines) else ""


class Jobs:
    """The jobs of a work folder.

    The lock is held by the process of the job, which inherits it, and so by no other one and not a moment longer, even
    if it is killed and whatever becomes of the process that started it.

    Args:
        folder: created with the first job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._lock, self._asking = folder, folder / "running", threading.Lock()

    def all(self) -> list[Job]:
        """The jobs, in the order of their start."""
        return [Job.read(path.parent) for path in sorted(self.folder.glob("*/job.json"))]

    def state(self, job: Job) -> State:
        """How a job is; only the last one can be running."""
        if job.path == self.all()[-1].path and self.running() is not None:
            return "running"
        return "done" if job.written else "failed" if job.reason() else "stopped"

    def running(self) -> int | None:
        """The process that runs now."""
        with self._asking:
            if (held := self._hold()) is None:
                return int(self._lock.read_text() or 0)
            os.close(held)
        return None

    def start(
        self, name: str, model: tuple[str, Path], photographs: Path, without: Path, options: Sequence[str]
    ) -> Job:
        """Start a job.

        Args:
            name: of the new class.
            model: in words, and its path.
            photographs, without: folders with photographs of it, and without it.
            options: of `wilson add`.

        Raises:
            UserError: one is running.
        """
        if self.running() is not None:
            raise UserError("another class is being added; wait until it is learned, or stop it")
        number = 1 + max((int(path.name.split("-")[0]) for path in self.folder.glob("*-*")), default=0)
        path = (self.folder / f"{number:04d}-{re.sub(r'[^A-Za-z0-9]+', '_', name)[:40]}").absolute()
        kept = path / "photographs"
        for kind, folder in (("with", photographs), ("without", without)):
            shutil.copytree(folder, kept / kind, ignore=shutil.ignore_patterns(".*"))
        command = [sys.executable, "-m", "wilson", "add", f"{name}={kept / 'with'}", "--without", str(kept / "without")]
        command += ["--to", str(model[1]), "--out", str(path / "run"), "--resume", *options]
        values: dict[str, Any] = {"name": name, "model": model[0], "command": command}
        (path / "errors.txt").touch()
        with replacing(path / "job.json") as temporary:
            temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
        job = Job(path, **values)
        self.go_on(job)
        return job

    def go_on(self, job: Job) -> None:
        """Run a job from where it is; UserError if one is running."""
        with self._asking:
            if (held := self._hold()) is None:
                raise UserError("another class is being added; wait until it is learned, or stop it")
            job.run.step(1).progress.unlink(missing_ok=True)  # of before
            try:
                with (job.path / "output.txt").open("ab") as output, (job.path / "errors.txt").open("wb") as errors:
                    process = subprocess.Popen(
                        job.command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                        pass_fds=[held], start_new_session=True,  # our Ctrl-C and our end are not for it
                    )  # fmt: skip
                self._lock.write_text(str(process.pid))
            finally:
                os.close(held)
        threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie

    def stop(self) -> None:
        """End the process that runs, with its workers; whatever it wrote is whole, as `wilson add` has it."""
        pid, end = self.running(), time.monotonic() + PATIENCE
        while pid and self.running() == pid:
            os.killpg(pid, signal.SIGTERM if time.monotonic() < end else signal.SIGKILL)
            time.sleep(0.1)

    def _hold(self) -> int | None:
        """Take the lock; None if a process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        held = os.open(self._lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            return None
        return held

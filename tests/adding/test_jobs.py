"""`wilson add` in a process of its own: one at a time, found again, stopped, and told why it failed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wilson.adding.jobs import Job, Jobs
from wilson.errors import UserError

SLEEP = "import time; print('awake', flush=True); time.sleep(60)"
# A process whose child would hold the lock if only the parent were ended
WORKERS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}], close_fds=False)"


def job_of(jobs: Jobs, code: str, number: int = 1) -> Job:
    """A job that runs Python code in place of `wilson add`."""
    path = jobs.folder / f"{number:04d}-zebra"
    path.mkdir(parents=True)
    values = {"name": "zebra", "model": "mine", "command": [sys.executable, "-c", code]}
    (path / "job.json").write_text(json.dumps(values))
    (path / "errors.txt").touch()
    return Job.read(path)


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("code", [SLEEP, WORKERS])
def test_a_job_runs_alone_and_is_found_again_and_stopped(tmp_path, code):
    jobs = Jobs(tmp_path / "jobs")
    job = job_of(jobs, code)
    assert jobs.running() is None and jobs.state(job) == "stopped"
    jobs.go_on(job)
    wait_for(lambda: "awake" in (job.path / "output.txt").read_text())
    again = Jobs(tmp_path / "jobs")  # of a server that was started anew
    assert again.running() == jobs.running() and again.all() == [job] and again.state(job) == "running"
    with pytest.raises(UserError, match="another class is being added"):
        again.go_on(job)
    with pytest.raises(UserError, match="another class is being added"):
        again.start("okapi", ("mine", tmp_path), tmp_path, tmp_path, [])
    again.stop()
    assert jobs.running() is None and jobs.state(job) == "stopped" and job.reason() == ""


def test_a_killed_job_leaves_the_place_to_the_next(tmp_path):
    jobs = Jobs(tmp_path / "jobs")
    job = job_of(jobs, SLEEP)
    jobs.go_on(job)
    os.killpg(jobs.running() or 0, signal.SIGKILL)
    wait_for(lambda: jobs.running() is None)
    jobs.go_on(job)
    jobs.stop()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('wilson: the disk is full')", "the disk is full"),
        ("import warnings; warnings.warn('old'); raise KeyError('lost')", "KeyError: 'lost'"),
        ("import warnings; warnings.warn('old')", ""),
    ],
)
def test_a_failed_job_tells_why(tmp_path, code, reason):
    jobs = Jobs(tmp_path / "jobs")
    job = job_of(jobs, code)
    jobs.go_on(job)
    wait_for(lambda: jobs.running() is None)
    assert job.reason() == reason and jobs.state(job) == ("failed" if reason else "stopped")


def test_a_job_keeps_its_photographs_and_names_its_folder_safely(tmp_path, monkeypatch):
    jobs = Jobs(tmp_path / "jobs")
    begun: list[Job] = []
    monkeypatch.setattr(jobs, "go_on", begun.append)
    for kind in ("with", "without"):
        (tmp_path / kind / ".thumbnails").mkdir(parents=True)
        (tmp_path / kind / f"{kind}.png").touch()
    folders = (tmp_path / "with", tmp_path / "without")
    for expected in ("0001-z_bre_", "0002-z_bre_"):
        job = jobs.start("zèbre /../", ("mine", Path("m.pt")), *folders, ["--epochs", "3"])
        assert job.path == tmp_path / "jobs" / expected
    assert [path.name for path in (job.path / "photographs" / "with").iterdir()] == ["with.png"]
    assert job.command[3:5] == ["add", f"zèbre /../={job.path}/photographs/with"]
    assert job.command[-3:] == ["--resume", "--epochs", "3"] and begun[-1] == job == jobs.all()[-1]
    assert job.command[job.command.index("--out") + 1] == str(job.run.path)

"""One process at a time in a folder, logs in their order whatever the clock says, and files that are refused."""

import multiprocessing
import os
import time
import zipfile

import pytest
import torch

from tests.support.tiny_runs import save_tiny
from wilson import checkpoint
from wilson.checkpoint import Checkpoint
from wilson.cli import caused_by_interrupt
from wilson.errors import UserError
from wilson.run_folder import RunFolder, StepFolder
from wilson.runs.folder import claimed
from wilson.training.board import Board


def hold(out, ready):
    with claimed(out, resume=True, overwrite=False):
        ready.set()
        time.sleep(60)


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}, {}])
def test_a_living_run_is_left_alone_and_a_dead_one_does_not_block(how, tmp_path):
    context = multiprocessing.get_context("fork")
    ready, out = context.Event(), tmp_path / "run"
    process = context.Process(target=hold, args=(out, ready))
    process.start()
    assert ready.wait(30)
    options = {"resume": False, "overwrite": False, **how}
    with pytest.raises(UserError, match=f"in use by process {process.pid} on "), claimed(out, **options):
        pass
    process.kill()
    process.join()
    with claimed(out, **options):
        assert f"process {os.getpid()} on" in RunFolder(out).lock.read_text()
    assert RunFolder(out).lock.read_text() == ""


def test_logs_follow_each_other_when_the_clock_is_set_back(tmp_path, monkeypatch):
    from wilson.report.reading import curves

    folder = StepFolder(tmp_path)
    for part, now in enumerate((2e9, 1e9, 1e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        board = Board(folder, 3 * part)
        for iteration in range(3 * part, 3 * part + 4):  # the last one is done again
            board.add_scalar("loss", 10 * part + iteration, iteration)
        board.close()
    assert curves(folder)["loss"] == (list(range(10)), [0, 1, 2, 13, 14, 15, 26, 27, 28, 29])


def test_weights_that_are_not_finite_or_do_not_fit_are_refused(tmp_path):
    path = save_tiny(tmp_path / "c.pt")
    values = checkpoint.load(path)
    name = next(name for name, value in values["weights"].items() if value.is_floating_point())
    whole = values["weights"][name]
    for change, text in (
        ({name: torch.full_like(whole, torch.nan)}, "no finite numbers"),
        ({name: whole[:1]}, "do not fit its configuration"),
    ):
        checkpoint.save({**values, "weights": {**values["weights"], **change}}, path)
        with pytest.raises(UserError, match=text):
            Checkpoint(path).model()
    for change in ({"step": "1"}, {"step": 9}, {"steps": [[999]]}, {"results": [3]}, {"weights": {"a": 1}}):
        checkpoint.save({**values, **change}, path)
        with pytest.raises(UserError, match="checkpoint"):
            Checkpoint(path)


def test_compressed_checkpoints_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    path, packed = save_tiny(tmp_path / "c.pt"), tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match="compressed"):
        checkpoint.load(packed)


def test_an_error_that_an_interrupt_caused_counts_as_one():
    error = RuntimeError("DataLoader worker (pid 1) exited unexpectedly")
    assert not caused_by_interrupt(error)
    error.__context__ = KeyboardInterrupt()
    assert caused_by_interrupt(error)

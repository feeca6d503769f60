"""What may happen to a run: killed at any moment, the disk full, the folder gone, files damaged, files with code."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.tiny_runs import QUICK, TINY, losses, one_line, options, same, weights
from wilson import checkpoint
from wilson.atomic import replacing
from wilson.checkpoint import Checkpoint
from wilson.cli import main
from wilson.errors import UserError
from wilson.run_folder import CHECKPOINT, RunFolder, StepFolder
from wilson.runs.folder import prepared, write_results
from wilson.runs.run import run
from wilson.training import loop, state
from wilson.training.state import TrainingState

KILLS = 20
OPTIONS = options(QUICK)
STATE: dict[str, Any] = {"format": checkpoint.FORMAT, "epoch": 2, "x": torch.arange(1000.0)}


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------------------- killed


@pytest.fixture(scope="module")
def processes():
    """Processes that start within milliseconds: forked from one that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch.utils.tensorboard", "matplotlib.figure", "torchmetrics", "tqdm"])
    finish(context, os.getpid)
    return context


@pytest.fixture(scope="module")
def unharmed(processes, tmp_path_factory):
    out = tmp_path_factory.mktemp("unharmed") / "run"
    finish(processes, work, out)
    return out


def epoch_in(step):
    """The epoch of the newest whole state of a step."""
    for path in (step.state, step.previous_state):
        with suppress(UserError):
            return checkpoint.load(path)["epoch"]
    return None


def finish(processes, target, *arguments, exitcode=0):
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == exitcode


def work(out):
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    run(TINY, out, resume=True)


def die_while_writing(out, number, share):
    """Run until a checkpoint or state is written for the `number`th time; die when `share` of it is on the disk."""
    save, calls = torch.save, []

    def half(values, file):
        calls.append(file)
        if len(calls) < number:
            return save(values, file)
        whole = Path(file.name).with_suffix(".whole")
        save(values, whole)
        data = whole.read_bytes()
        whole.unlink()
        file.write(data[: int(share * len(data))])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half  # type: ignore[assignment]
    work(out)


def scalars(folder):
    """Every value in the logs of a step by name and iteration; a killed process and its successor may both have it."""
    found: dict[tuple[str, int], float] = {}
    for file in folder.glob("events.*"):
        for tag, points in losses(file).items():
            for step, value in points:
                assert found.setdefault((tag, step), value) == value
    return found


def assert_equal_runs(out, unharmed):
    for step in (0, 1):
        assert same(weights(out, step), weights(unharmed, step))
        assert scalars(out / f"step-{step}") == scalars(unharmed / f"step-{step}")
    assert json.loads((out / "results.json").read_text()) == json.loads((unharmed / "results.json").read_text())
    leftovers = (".part", "training.pt", "training.previous.pt")
    assert not [name for name in names(out) if any(word in name for word in leftovers)]


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_as_if_unharmed(processes, unharmed, tmp_path):
    moments, start = random.Random(0), time.monotonic()
    finish(processes, work, tmp_path / "timed")
    duration = time.monotonic() - start
    kills = runs = 0
    while kills < KILLS:
        out, finished = tmp_path / f"run-{runs}", False
        while not finished:
            process = processes.Process(target=work, args=(out,))
            process.start()
            process.join(moments.uniform(0, duration) if kills < KILLS else None)
            process.kill()
            process.join()
            finished = process.exitcode == 0
            assert finished or process.exitcode == -signal.SIGKILL
            kills += not finished
        assert_equal_runs(out, unharmed)
        runs += 1


@pytest.mark.slow
def test_killed_while_writing_a_checkpoint(processes, unharmed, tmp_path):
    for share in (0.0, 0.5, 0.99):
        out = tmp_path / f"run-{share}"
        finish(processes, die_while_writing, out, 2, share, exitcode=-signal.SIGKILL)
        assert [name for name in names(out) if ".part" in name] and epoch_in(RunFolder(out).step(0)) == 1
        finish(processes, work, out)
        assert_equal_runs(out, unharmed)


@pytest.mark.slow
def test_a_damaged_state_costs_an_epoch_and_nothing_else(processes, unharmed, tmp_path):
    out = tmp_path / "run"
    finish(processes, die_while_writing, out, 6, 0.5, exitcode=-signal.SIGKILL)  # 2 states, checkpoint, 3 states
    step = RunFolder(out).step(1)
    assert epoch_in(step) == 2
    damage(step.state)
    assert epoch_in(step) == 1
    finish(processes, work, out)
    assert_equal_runs(out, unharmed)


# ------------------------------------------------------------------------------------------------------ disk, folders


@contextmanager
def no_space_after(count):
    """No file grows beyond `count` bytes: the kernel refuses the write in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_what_was_whole(tmp_path):
    step = StepFolder(tmp_path)
    state.save(STATE, step)
    state.save({**STATE, "epoch": 3}, step)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    assert set(before) == {"training.pt", "training.previous.pt"}
    with no_space_after(2000), pytest.raises(OSError, match=r"File too large.*training\.pt"):
        state.save({**STATE, "epoch": 4}, step)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    write_results(RunFolder(tmp_path), TINY, [])
    with no_space_after(20), pytest.raises(OSError, match=r"File too large.*results\.json"):
        write_results(RunFolder(tmp_path), TINY, [{"step": 0}])
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == []


def test_full_disk_in_a_run_is_one_line(tmp_path, capsys):
    with no_space_after(100_000):
        assert main(["run", *OPTIONS, "--out", str(tmp_path / "run")]) == 2
    line = one_line(capsys)
    assert "training.pt" in line and "free some space, then --resume" in line
    assert not [name for name in names(tmp_path) if name.endswith((".pt", ".part"))]


def test_folder_removed_during_a_run_is_one_line(tmp_path, capsys, monkeypatch):
    out, original = tmp_path / "run", loop.gradient_norm

    def remove(*arguments):
        shutil.rmtree(out, ignore_errors=True)
        return original(*arguments)

    monkeypatch.setattr(loop, "gradient_norm", remove)
    assert main(["run", *OPTIONS, "--out", str(out)]) == 2
    line = one_line(capsys)
    assert str(out) in line and "moved or removed" in line


def test_leftovers_of_killed_processes_are_removed_on_resume(tmp_path):
    out = tmp_path / "run"
    prepare(out, TINY)
    (out / "step-0").mkdir()
    for path in (out / ".results.json.1.part", out / "step-0" / ".training.pt.1.part"):
        path.write_text("half")
    prepare(out, TINY, resume=True)
    assert names(out) == ["command.txt", "config.yaml", "run.lock"]


def prepare(out, config, resume=False, overwrite=False, data=None):
    with prepared(out, config, data, resume=resume, overwrite=overwrite):
        pass


def test_writing_fails_without_a_trace(tmp_path):
    def interrupted():
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


# ------------------------------------------------------------------------------------------------------ damaged files


def test_any_flipped_or_missing_byte_is_noticed(tmp_path):
    """Of every damage either nothing is read, or exactly what was written."""
    path, chance = tmp_path / "c.pt", random.Random(0)
    checkpoint.save(STATE, path)
    whole = path.read_bytes()
    damages = [partial(flip, whole, position) for position in chance.sample(range(len(whole)), 200)]
    damages += [partial(cut, whole, length) for length in chance.sample(range(len(whole)), 50)]
    refused = 0
    for damage in damages:
        path.write_bytes(damage())
        try:
            values = checkpoint.load(path)
        except UserError:
            refused += 1
        else:
            assert values.keys() == STATE.keys() and values["epoch"] == 2 and torch.equal(values["x"], STATE["x"])
    assert refused > 200  # the rest fell on padding


def flip(data, position):
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


def cut(data, length):
    return data[:length]


def training(step, width=3):
    """The state of a step that trains a small layer."""
    return TrainingState(step, torch.device("cpu"), method=torch.nn.Linear(width, 1))


def keep(step, *epochs):
    for epoch in epochs:
        torch.manual_seed(epoch)
        kept = training(step)
        kept.keep(epoch)
    return kept.parts["method"].state_dict()


def foreign(path):
    """Whole states that are none of this step."""
    checkpoint.save(STATE, path)
    yield "keys of another program"
    other = StepFolder(path.parent / "other")
    other.path.mkdir()
    for width in (5, 3):
        training(other, width).keep(7)
        whole = checkpoint.load(other.state)
        if width == 5:
            checkpoint.save(whole, path)
            yield "another network"
    for change in ({"epoch": "2"}, {"epoch": True}, {"epoch": 0}, {"rng": 3}, {"method": [1]}, {"method": {1: 2}}):
        checkpoint.save({**whole, **change}, path)
        yield str(change)
    checkpoint.save({"format": checkpoint.FORMAT, "weights": {}}, path)
    yield "the checkpoint of a step"


def test_damaged_state_falls_back_on_the_one_before(tmp_path, capsys):
    step = StepFolder(tmp_path)
    assert training(step).restore() == 0
    keep(step, 1, 2, 3)
    assert training(step).restore() == 3 and capsys.readouterr().out == ""
    damage(step.state)
    going_on = training(step)
    assert going_on.restore() == 2
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "training.pt cannot be used" in said and "after epoch 2" in said
    assert step.state.exists()  # until there is another
    going_on.keep(3)
    assert training(step).restore() == 3 and checkpoint.load(step.previous_state)["epoch"] == 2
    damage(step.state)
    damage(step.previous_state)
    with pytest.raises(UserError, match="move away, and --resume trains this step from its start; the steps before it"):
        training(step).restore()


def test_a_foreign_state_falls_back_on_the_one_before(tmp_path, capsys):
    step = StepFolder(tmp_path)
    weights_before = keep(step, 1, 2)
    step.state.replace(step.previous_state)
    for kind in foreign(step.state):
        going_on = training(step)
        assert going_on.restore() == 2, kind
        assert same(going_on.parts["method"].state_dict(), weights_before)
        assert "cannot be used" in capsys.readouterr().out
    step.previous_state.unlink()
    with pytest.raises(UserError, match=r"training\.pt: damaged, or of another configuration or program"):
        training(step).restore()


def damage(path):
    data = path.read_bytes()
    path.write_bytes(flip(data, len(data) // 2))


def test_damaged_configuration_is_one_line(tmp_path):
    prepare(tmp_path, TINY)
    for text in ("{", "seed: 0\nnonsense: 1\n", "just words"):
        RunFolder(tmp_path).config.write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml.*configuration"):
            prepare(tmp_path, TINY, resume=True)
    RunFolder(tmp_path).config.write_text(yaml.safe_dump({}))
    with pytest.raises(UserError, match="was run with"):
        prepare(tmp_path, replace(TINY, seed=7), resume=True)


def test_checkpoint_of_another_version_is_one_line(tmp_path):
    values = {"format": checkpoint.FORMAT, "weights": {}, "task": "5-3", "classes": [], "steps": [], "step": 0}
    for config in ({"nonsense": 1}, {"losses": {"nonsense": 1}}, None):
        checkpoint.save({**values, "config": config, "results": []}, tmp_path / CHECKPOINT)
        with pytest.raises(UserError, match="this version does not take its configuration"):
            Checkpoint(tmp_path / CHECKPOINT)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    made = tmp_path / "made"
    step = StepFolder(tmp_path)
    for path in (step.checkpoint, step.state):
        torch.save({"format": checkpoint.FORMAT, "epoch": 1, "weights": Touch(made)}, path)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        Checkpoint(step.checkpoint)
    with pytest.raises(UserError, match="damaged, or of another configuration or program"):
        training(step).restore()
    assert not made.exists()
    torch.load(step.checkpoint, weights_only=False)  # the file is as harmful as it is meant to be
    assert made.exists()

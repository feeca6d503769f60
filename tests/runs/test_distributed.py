"""Several processes compute what one does with the same global batch; they die and go on; only the first one writes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.processes import in_processes
from tests.support.tiny_runs import TINY, checkpoint_of, losses, options
from wilson import distributed
from wilson.checkpoint import Checkpoint
from wilson.data.similarity import write_similarity
from wilson.errors import UserError
from wilson.evaluation.evaluate import evaluate_checkpoint
from wilson.methods.base import WeaklySupervised
from wilson.models.batch_norm import GlobalBatchNorm, synchronize
from wilson.run_folder import StepFolder
from wilson.runs.run import run
from wilson.training.state import TrainingState

# 24 and 18 images in batches of 8, for 2 processes 4 + 4 and for 3 of them 2 + 3 + 3: 21 and 20 iterations. At higher
# rates a rounding error that flips the sign before a leaky ReLU grows by orders of magnitude within a few iterations.
RATES: dict[str, Any] = {"lr_encoder": 1e-4, "lr_head": 1e-4}
CONFIG = replace(
    TINY,
    base=replace(TINY.base, epochs=7, **RATES),
    step=replace(TINY.step, epochs=10, **RATES),
    evaluate_every=100,
    precision="fp32",
)
SHORT = replace(CONFIG, base=replace(CONFIG.base, epochs=2))


pytestmark = pytest.mark.usefixtures("one_thread")  # as in the processes


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run(CONFIG, tmp_path_factory.mktemp("alone") / "run")
    torch.set_num_threads(threads)


def both_steps(out, start):
    """Each step from the same model, so that the second one does not start from what the first one's rounding left."""
    with distributed.session(torch.device("cpu")):
        run(CONFIG, out / "base", steps=[0])
        run(CONFIG, out / "step", steps=[1], start=start)


def assert_same_course(actual, expected, tolerance=1e-4):
    """Losses, and weights relative to the largest of each tensor."""
    curves, wanted = losses(actual), losses(expected)
    terms = [tag for tag in wanted if tag.startswith("loss/")]
    assert curves.keys() == wanted.keys() and terms
    for tag in terms:
        assert [i for i, _ in curves[tag]] == [i for i, _ in wanted[tag]]
        assert [v for _, v in curves[tag]] == pytest.approx([v for _, v in wanted[tag]], rel=tolerance, abs=1e-6), tag
    weights, reference = (Checkpoint(StepFolder(folder).checkpoint).weights for folder in (actual, expected))
    assert weights.keys() == reference.keys()
    for name, tensor in reference.items():
        if tensor.is_floating_point():
            limit = tolerance * tensor.abs().max().item() + 1e-6
            assert (weights[name] - tensor).abs().max().item() <= limit, name
        else:
            assert torch.equal(weights[name], tensor), name


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_compute_what_one_does(alone, tmp_path, count):
    in_processes(count, both_steps, tmp_path, checkpoint_of(alone, 0))
    assert_same_course(tmp_path / "base" / "step-0", alone / "step-0")
    assert_same_course(tmp_path / "step" / "step-1", alone / "step-1")
    assert (tmp_path / "step" / "report.html").exists()
    assert len(list((tmp_path / "step" / "step-1").glob("events.*"))) == 1  # only the first process writes


def test_checkpoints_move_between_numbers_of_processes(tmp_path, monkeypatch):
    """Two processes train the first epoch, one the second: as one process trains both."""
    expected = run(SHORT, tmp_path / "expected", steps=[0])
    out, keep = tmp_path / "moved", TrainingState.keep

    def stopping(*arguments):
        keep(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "keep", stopping)
    with pytest.raises(AssertionError, match="KeyboardInterrupt"):
        in_processes(2, functools.partial(run, steps=[0]), SHORT, out)
    monkeypatch.setattr(TrainingState, "keep", keep)
    run(SHORT, out, steps=[0], resume=True)
    assert_same_course(out / "step-0", expected / "step-0")


def test_accumulated_gradients_are_those_of_the_whole_batch(alone, tmp_path):
    """With batch-norm frozen; 8 images in 3 parts of 2, 3 and 3."""
    start, found = checkpoint_of(alone, 0), {}
    for accumulate in (1, 3):
        config = replace(CONFIG, step=replace(CONFIG.step, epochs=2, warmup=1, freeze_norm=True, accumulate=accumulate))
        found[accumulate] = run(config, tmp_path / str(accumulate), steps=[1], start=start) / "step-1"
    assert_same_course(found[3], found[1])
    before, after = Checkpoint(start).weights, Checkpoint(StepFolder(found[1]).checkpoint).weights
    statistics = [name for name in before if "running_" in name]
    assert statistics and all(torch.equal(before[name], after[name]) for name in statistics)


def step_in_parts(method, out, start, similarity):
    config = replace(CONFIG, method=method, step=replace(CONFIG.step, epochs=2, warmup=1, accumulate=2))
    return run(replace(config, data=replace(config.data, similarity=str(similarity))), out, steps=[1], start=start)


@pytest.mark.parametrize(
    "method",
    ["cam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rasp", "finetune", "ss", "plop", "mib", "sdr"))],
)
def test_methods_on_processes_in_parts(alone, tmp_path, method):
    """Two processes that take their share in two parts, through the end of the warm-up."""
    start, table = checkpoint_of(alone, 0), tmp_path / "table.npz"
    classes = Checkpoint(start).task.classes
    write_similarity(table, classes, 1 / (1 + torch.arange(len(classes) ** 2.0).view(len(classes), -1)))
    expected = step_in_parts(method, tmp_path / "alone", start, table)
    in_processes(2, step_in_parts, method, tmp_path / "two", start, table)
    assert_same_course(tmp_path / "two" / "step-1", expected / "step-1")


def evaluated(path):
    with distributed.session(torch.device("cpu")):
        return evaluate_checkpoint(path, None, None, "cpu", None)


def test_every_image_is_evaluated_once(alone):
    """12 images among 5 processes."""
    path = checkpoint_of(alone, 1)
    wanted = evaluated(path)
    for entry in in_processes(5, evaluated, path):
        assert entry["pixel_accuracy"] == pytest.approx(wanted["pixel_accuracy"], abs=0.01)
        for name, iou in wanted["iou"].items():
            assert entry["iou"][name] == pytest.approx(iou, abs=0.02)


def normalized(count):
    """Output, gradients and statistics of batch-norm over all processes, each with its part of one batch."""
    torch.manual_seed(0)
    x, weight = torch.randn(7, 5, 3, 4, dtype=torch.float64) + 100, torch.randn(7, 5, 3, 4, dtype=torch.float64)
    with distributed.session(torch.device("cpu")):
        norm = nn.Sequential(nn.BatchNorm2d(5))
        nn.init.normal_(norm.get_parameter("0.weight"))
        if count > 1:
            synchronize(norm, torch.device("cpu"))
            assert type(norm[0]) is GlobalBatchNorm
        norm.double()
        part = distributed.part(7, count, distributed.rank())
        mine = x[part].clone().requires_grad_()
        y = norm(mine)
        (y * weight[part]).sum().backward()
        scale = norm.get_parameter("0.weight").grad
        assert scale is not None and mine.grad is not None
        scale = distributed.total(scale)
        state = {name: tensor.numpy() for name, tensor in norm.state_dict().items()}
        return y.detach().numpy(), mine.grad.numpy(), scale.numpy(), state


def test_batch_norm_over_processes():
    y, grad, scale, state = normalized(1)
    found = in_processes(3, normalized, 3)
    np.testing.assert_allclose(np.concatenate([part[0] for part in found]), y, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.concatenate([part[1] for part in found]), grad, rtol=1e-8, atol=1e-8)
    for part in found:
        np.testing.assert_allclose(part[2], scale, rtol=1e-8)
        assert part[3].keys() == state.keys()
        for name in state:
            np.testing.assert_allclose(part[3][name], state[name], rtol=1e-9, err_msg=name)


def weighted_loss(count):
    """SEG of 7 images of which 3 have an image weight of 0, as the loop adds it up."""
    torch.manual_seed(0)
    scores, old = torch.randn(7, 6, 4, 4), torch.randn(7, 4, 4, 4)
    labels = torch.zeros(7, 5)
    labels[:, 4] = 1
    scores[:3, 5] = -1e4  # its probability underflows: the label is not found
    logits = torch.randn(7, 6, 4, 4)
    with distributed.session(torch.device("cpu")):
        part = distributed.part(7, count, distributed.rank())
        mine = logits[part].clone().requires_grad_()
        method: Any = None  # whose weights the loss does not need
        loss = WeaklySupervised.pseudo_label_loss(method, mine, scores[part], old[part], labels[part], alpha=0.5)
        share = len(mine) / 7
        (share * loss).backward()
        return distributed.total(share * loss.detach()).item(), mine.grad.numpy()


def test_weighted_mean_is_taken_over_all_processes():
    loss, grad = weighted_loss(1)
    assert not grad[:3].any() and grad[3:].any()
    for count in (2, 3):
        found = in_processes(count, weighted_loss, count)
        assert [part[0] for part in found] == pytest.approx([loss] * count, rel=1e-5)
        np.testing.assert_allclose(np.concatenate([part[1] for part in found]), grad, rtol=1e-5, atol=1e-8)


def test_batch_too_small_for_its_parts_is_refused(monkeypatch):
    with pytest.raises(UserError, match="leaves single images to batch-norm"):
        run(replace(CONFIG, base=replace(CONFIG.base, accumulate=5)), Path("never"))
    monkeypatch.setattr(distributed, "processes", lambda: 9)
    with pytest.raises(UserError, match="batch of 8 images cannot be shared out to 9 processes"):
        run(CONFIG, Path("never"))
    assert not Path("never").exists()


@pytest.mark.slow
def test_killed_worker_is_survived(tmp_path):
    """One worker is killed in the middle of the second epoch; torchrun restarts all, and they go on from the first."""
    expected = run(SHORT, tmp_path / "expected", steps=[0])
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, signal, sys\n"
        "import torch\n"
        "from wilson import distributed\n"
        "from wilson.cli import main\n"
        "from wilson.training import loop\n"
        "norm, count = loop.gradient_norm, 0\n"
        "def dying(*arguments):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == 5 and distributed.rank() == 1 and not distributed.restarted():\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return norm(*arguments)\n"
        "loop.gradient_norm = dying\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1",
         str(worker), "train", *options(SHORT), f"--out={tmp_path / 'out'}"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "exitcode: -9" in done.stderr
    assert_same_course(tmp_path / "out" / "step-0", expected / "step-0")

"""The loop: schedule, resuming, checkpoints, guards, run folders, and the errors that users make."""

import json
import re
from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from tests.support.tiny_runs import QUICK, TINY, checkpoint_of, losses, same, weights
from wilson import checkpoint
from wilson.checkpoint import Checkpoint
from wilson.config import RECIPES, Config, StepConfig, from_dict, to_dict
from wilson.errors import UserError
from wilson.evaluation.metrics import scores
from wilson.models import Localizer
from wilson.run_folder import RunFolder
from wilson.runs import run as running
from wilson.runs.demo import demo
from wilson.runs.folder import default_folder, nothing_trained
from wilson.runs.run import run
from wilson.training import loop
from wilson.training.state import TrainingState


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of both steps."""
    return run(TINY, tmp_path_factory.mktemp("whole") / "run")


def test_run_folder(whole):
    results = json.loads((whole / "results.json").read_text())
    assert {k: results[k] for k in ("method", "task", "protocol", "seed")} == {
        "method": "wilson",
        "task": "5-3",
        "protocol": "disjoint",
        "seed": 0,
    }
    assert [step["step"] for step in results["steps"]] == [0, 1]
    assert [len(step["classes"]) for step in results["steps"]] == [6, 9]
    assert results["steps"][0]["miou"]["old"] is None and results["steps"][1]["miou"]["old"] is not None
    assert from_dict(yaml.safe_load((whole / "config.yaml").read_text())) == TINY
    for step in (0, 1):
        folder = RunFolder(whole).step(step)
        assert folder.checkpoint.is_file() and folder.panels.is_dir()
        assert not folder.state.exists() and not folder.previous_state.exists()
    assert "<html" in (whole / "report.html").read_text()
    curves = losses(whole / "step-1")
    assert {f"loss/{term}" for term in ("total", "cls", "loc", "enc", "sss", "seg")} <= set(curves)
    assert {"lr/encoder", "lr/decoder", "lr/classifiers", "lr/localizer", "validation/miou_old"} <= set(curves)


def test_two_runs_are_equal(whole, tmp_path):
    again = run(TINY, tmp_path / "again")
    assert same(weights(whole, 1), weights(again, 1))


def test_workers_do_not_change_the_result(whole, tmp_path):
    config = replace(TINY, data=replace(TINY.data, workers=1))
    assert same(weights(whole, 0), weights(run(config, tmp_path / "run", steps=[0]), 0))


class StopHereError(Exception):
    pass


@pytest.mark.parametrize(("step", "epoch"), [(0, 1), (1, 0), (1, 2)])
def test_resume_continues_exactly(whole, tmp_path, monkeypatch, step, epoch):
    """Stopped in the middle of an epoch, the resumed run has the losses and weights of the whole one."""
    out, original = tmp_path / "run", loop.gradient_norm
    count = {"iterations": 0}
    stop = {(0, 1): 5, (1, 0): 7, (1, 2): 11}[step, epoch]  # 3 iterations an epoch in step 0, 2 in step 1

    def interrupting(*arguments):
        count["iterations"] += 1
        if count["iterations"] == stop:
            raise StopHereError
        return original(*arguments)

    monkeypatch.setattr(loop, "gradient_norm", interrupting)
    with pytest.raises(StopHereError):
        run(TINY, out)
    monkeypatch.setattr(loop, "gradient_norm", original)
    run(TINY, out, resume=True)
    for each in (0, 1):
        assert same(weights(whole, each), weights(out, each))
        expected, actual = losses(whole / f"step-{each}"), losses(out / f"step-{each}")
        assert {t: dict(v) for t, v in actual.items()} == {t: dict(v) for t, v in expected.items()}
    assert json.loads((out / "results.json").read_text()) == json.loads((whole / "results.json").read_text())


def test_the_best_epoch_is_kept_and_survives_a_kill(tmp_path, monkeypatch):
    """The scores fall after the first epoch: its weights are the step's, also if the run was killed later."""
    config = replace(TINY, keep_best=True, evaluate_every=1, base=replace(TINY.base, epochs=3))
    seen = []

    def falling(evaluated):
        seen.append(evaluated)
        return -float(len(seen))

    monkeypatch.setattr(running, "mean_iou", falling)
    single = run(replace(TINY, base=replace(TINY.base, epochs=3)), tmp_path / "last", steps=[0])
    best = run(config, tmp_path / "best", steps=[0])
    assert len(seen) == 3 and not same(weights(best, 0), weights(single, 0))
    assert json.loads((best / "results.json").read_text())["steps"][0]["iou"] == seen[0][0]["iou"]

    for epochs in (2, 3):
        seen.clear()
        keep = TrainingState.keep

        def stopping(self, epoch, keep=keep, last=epochs):
            keep(self, epoch)
            if epoch == last:
                raise StopHereError

        monkeypatch.setattr(TrainingState, "keep", stopping)
        with pytest.raises(StopHereError):
            run(config, tmp_path / f"killed{epochs}", steps=[0])
        monkeypatch.setattr(TrainingState, "keep", keep)
        resumed = run(config, tmp_path / f"killed{epochs}", steps=[0], resume=True)
        assert len(seen) == 3 and same(weights(best, 0), weights(resumed, 0))
        assert (resumed / "results.json").read_text() == (best / "results.json").read_text()
    with pytest.raises(UserError, match="evaluate_every 1, not 2"):
        run(replace(config, evaluate_every=2), best, steps=[0], resume=True)


def test_a_folder_in_which_nothing_was_trained_does_not_block(tmp_path, monkeypatch):
    def failing(*_):
        raise StopHereError

    out, original = tmp_path / "run", loop.gradient_norm
    monkeypatch.setattr(loop, "gradient_norm", failing)
    with pytest.raises(StopHereError):
        run(QUICK, out, steps=[0])
    assert (out / "config.yaml").exists()
    assert nothing_trained(out)
    (out / "notes.txt").write_text("mine")
    assert not nothing_trained(out)
    (out / "notes.txt").unlink()
    (out / "step-0" / "training.pt").write_bytes(b"state")
    with pytest.raises(UserError, match="not empty"):
        run(QUICK, out, steps=[0])
    (out / "step-0" / "training.pt").unlink()
    monkeypatch.setattr(loop, "gradient_norm", original)
    run(replace(QUICK, seed=5), out, steps=[0])
    with pytest.raises(UserError, match="not empty"):
        run(QUICK, out, steps=[0])


def test_weights_that_cannot_be_had_leave_no_folder(tmp_path, monkeypatch):
    asked = []

    class Session:
        def head(self, *arguments, **options):
            asked.append(options["timeout"])
            raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    network = replace(TINY.model, backbone="resnet18", weights="hub", stride=16)
    with pytest.raises(UserError, match=r"resnet18.*cannot be reached.*--model.weights none"):
        run(replace(TINY, model=network), tmp_path / "run")
    assert asked == [10] and not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="no such file"):
        run(replace(TINY, model=replace(TINY.model, weights="none.pth")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_name_of_a_folder_is_short_enough_for_a_file_system():
    task = ",".join(f"class_{number}" for number in range(60))
    assert len(default_folder(replace(TINY, task=task)).name) < 120


@pytest.mark.parametrize("workers", [0, 1])
def test_resume_draws_the_same_random_numbers(tmp_path, monkeypatch, workers):
    """Dropout is what draws from torch's generator; the loader's workers must not."""
    monkeypatch.setattr(Localizer, "forward", lambda self, x: nn.Sequential.forward(self, F.dropout2d(x)))
    config = replace(TINY, data=replace(TINY.data, workers=workers), base=replace(TINY.base, epochs=1))
    base = checkpoint_of(run(config, tmp_path / "base", steps=[0]), 0)
    whole = run(config, tmp_path / "whole", steps=[1], start=base)
    keep = TrainingState.keep

    def stopping(*arguments):
        keep(*arguments)
        raise StopHereError

    monkeypatch.setattr(TrainingState, "keep", stopping)
    with pytest.raises(StopHereError):
        run(config, tmp_path / "resumed", steps=[1], start=base)
    monkeypatch.setattr(TrainingState, "keep", keep)
    resumed = run(config, tmp_path / "resumed", steps=[1], start=base, resume=True)
    assert same(weights(whole, 1), weights(resumed, 1))


def test_resume_refuses_other_options(whole):
    with pytest.raises(UserError, match=r"base\.lr_head .*resume with the same options"):
        run(replace(TINY, base=replace(TINY.base, lr_head=0.5)), whole, resume=True)


def test_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        run(TINY, tmp_path)
    with pytest.raises(UserError, match=r"thesis\.txt.*nothing was removed"):
        run(TINY, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_learning_rates_follow_the_schedule(whole):
    curves = losses(whole / "step-1")
    settings, total, warmup = TINY.step, 6, 2  # 18 images in batches of 8: 2 iterations an epoch

    def expected(t, base):
        return base * (1 if t < warmup else (1 - t / total) ** settings.power)

    for group, base in (("encoder", settings.lr_encoder), ("localizer", settings.lr_head)):
        points = curves[f"lr/{group}"]
        assert points
        for t, value in points:
            assert value == pytest.approx(expected(t, base), rel=1e-5)


def test_checkpoint_is_atomic_and_executes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    checkpoint.save({"format": 1, "x": torch.ones(2)}, path)

    def broken(values, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save({"format": 1}, path)
    monkeypatch.undo()
    assert torch.equal(checkpoint.load(path)["x"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]

    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"format": 1, "evil": Evil()}, path)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("damage", ["cut", "text", "flipped"])
def test_damaged_checkpoint_is_refused(whole, tmp_path, damage):
    data = bytearray((checkpoint_of(whole, 0)).read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "text":
        data = bytearray(b"hello")
    else:
        data[:200] = bytes(255 - b for b in data[:200])
    (tmp_path / "c.pt").write_bytes(data)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        Checkpoint(tmp_path / "c.pt")


def test_start_of_another_task_or_network_is_refused(whole, tmp_path):
    start = checkpoint_of(whole, 0)
    with pytest.raises(UserError, match="is of task 5-3"):
        run(replace(TINY, task="4-4"), tmp_path / "a", steps=[1], start=start)
    with pytest.raises(UserError, match="network"):
        run(replace(TINY, model=replace(TINY.model, head_channels=16)), tmp_path / "a", steps=[1], start=start)
    with pytest.raises(UserError, match="needs the checkpoint of step 0"):
        run(TINY, tmp_path / "a", steps=[1])
    with pytest.raises(UserError, match="leave the checkpoint out"):
        run(TINY, tmp_path / "a", steps=[0], start=start)
    with pytest.raises(UserError, match="has steps"):
        run(TINY, tmp_path / "a", steps=[2], start=start)
    assert not (tmp_path / "a").exists()


def test_a_single_new_class_is_refused_before_anything_is_written(tmp_path):
    config = replace(TINY, task="1,2,3,4,5/6")
    with pytest.raises(UserError, match=r"single class zigzag.*--data\.negatives"):
        run(config, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_single_new_class_learns_with_the_labels_of_old_ones(tmp_path):
    config = replace(TINY, task="1,2,3,4,5/6", all_labels=True, step=replace(TINY.step, epochs=1))
    assert run(config, tmp_path / "a").joinpath("step-1", "checkpoint.pt").exists()


def test_too_few_images_for_a_batch(tmp_path):
    with pytest.raises(UserError, match="fewer than a batch of 800"):
        run(replace(TINY, base=replace(TINY.base, batch=800)), tmp_path / "a")


def test_passes_let_few_images_fill_batches_and_epochs(tmp_path, capsys):
    config = replace(TINY, data=replace(TINY.data, shots=1), step=replace(TINY.step, epochs=2, batch=8))
    with pytest.raises(UserError, match=r"3 images, fewer than a batch of 8; .*--step\.passes"):
        run(config, tmp_path / "a", steps=[0, 1])
    run(replace(config, step=replace(config.step, passes=6)), tmp_path / "b")
    assert len(losses(tmp_path / "b" / "step-1")["loss/total"]) == 2 * (3 * 6 // 8)
    first, last = (line for line in capsys.readouterr().out.splitlines() if line.startswith("step 1, epoch"))
    assert re.search(r"images/s, about \d+:\d\d:\d\d left$", first) and last.endswith("images/s")


def test_few_shots_take_the_published_number_of_iterations():
    few = RECIPES["few-shots"]
    images = (few.data.shots or 0) * 5  # of a 15-5 step
    assert few.step.epochs * (few.step.passes * images // few.step.batch) == 1000


def test_not_finite_gradient_stops_with_the_terms(tmp_path):
    with pytest.raises(UserError, match=r"gradient is not finite .*lower learning rate"):
        run(replace(TINY, base=replace(TINY.base, lr_encoder=1e30, lr_head=1e30)), tmp_path / "a", steps=[0])


def test_bfloat16_trains(tmp_path):
    out = run(replace(TINY, precision="bf16", task="5-3"), tmp_path / "a")
    assert all(value == value for _, value in losses(out / "step-1")["loss/total"])


def test_incremental_step_needs_no_masks(whole, tmp_path):
    """Image-level labels alone: the masks of the training images are gone from the disk."""
    from wilson.data.export import export
    from wilson.data.sources.synthetic import Synthetic

    root = tmp_path / "voc"
    export({"train": Synthetic("train", 42, 32), "val": Synthetic("val", 12, 32)}, root)
    for mask in (root / "SegmentationClass").glob("train_*"):
        mask.unlink()
    config = replace(TINY, data=replace(TINY.data, root=str(root)))
    out = run(config, tmp_path / "run", steps=[1], start=checkpoint_of(whole, 0))
    assert json.loads((out / "results.json").read_text())["steps"][-1]["step"] == 1
    with pytest.raises(UserError, match="needs masks"):
        run(config, tmp_path / "base", steps=[0])


def test_offline_trains_all_classes_at_once(tmp_path):
    out = run(replace(TINY, method="offline"), tmp_path / "run")
    results = json.loads((out / "results.json").read_text())
    assert results["method"] == "offline" and len(results["steps"]) == 1
    assert len(results["steps"][0]["classes"]) == 9 and results["steps"][0]["miou"]["old"] is not None


def test_demo_folders(tmp_path):
    config = replace(TINY, base=replace(TINY.base, epochs=1), step=replace(TINY.step, epochs=1, warmup=0))
    report = demo(config, tmp_path / "d")
    assert report == tmp_path / "d" / "report.html" and "finetune" in report.read_text()
    methods = {
        name: json.loads((tmp_path / "d" / name / "results.json").read_text())
        for name in ("base", "finetune", "wilson")
    }
    assert [m["method"] for m in methods.values()] == ["base", "finetune", "wilson"]
    assert methods["wilson"]["steps"][0] == methods["base"]["steps"][0]


def test_scores_of_a_known_confusion_matrix():
    matrix = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 4], [0, 0, 0, 0]])
    entry = scores(matrix, ["background", "a", "b", "c"], old=2, step=1)
    assert entry["iou"] == {"background": 66.67, "a": 50.0, "b": 0.0, "c": None}
    assert entry["miou"] == {"old": 50.0, "new": 0.0, "all": 38.89}
    assert entry["pixel_accuracy"] == 56.25
    assert scores(matrix, ["background", "a", "b", "c"], old=1, step=0)["miou"]["old"] is None


def test_recipes_are_those_of_the_paper():
    voc: Config = RECIPES["voc"]
    assert voc.for_step(0) == StepConfig(30, 24, 0.01, 0.01, 0, 0.9, 0.9, 1e-4)
    assert voc.for_step(1) == StepConfig(40, 24, 0.001, 0.01, 5, 0.9, 0.9, 1e-4)
    assert (voc.model.backbone, voc.model.stride, voc.data.crop, voc.losses.alpha) == ("resnet101", 16, 512, 0.5)
    assert from_dict(to_dict(voc)) == voc and voc.model.head_channels == voc.model.localizer_channels == 256

"""Classes added to models of other libraries and of wilson, from photographs in folders."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import wilson
from tests.support.data_sets import box, write_instances
from tests.support.foreign_models import CLASSES, Net
from tests.support.processes import in_processes
from wilson.adding import choices
from wilson.adding.add import _known, make_plan
from wilson.adding.photographs import open_photographs
from wilson.adding.subject import open_subject
from wilson.cli import main
from wilson.data.sources.synthetic import Synthetic
from wilson.errors import UserError
from wilson.evaluation.evaluate import evaluate_checkpoint
from wilson.run_folder import RunFolder
from wilson.runs.folder import prepared

OLD = ("background", "a", "b", "c")
ROOT = Path(__file__).parents[2]
QUICK: dict[str, Any] = {"epochs": 2, "batch": 4, "crop": 64, "workers": 0, "device": "cpu"}


def test_grows_a_module_and_leaves_it_alone(photographs, tmp_path):
    net = Net().eval()
    before = copy.deepcopy(net.state_dict())
    grown = wilson.add_classes(
        net, {"dots": photographs / "dots"}, without=photographs / "without", out=tmp_path / "run", names=OLD, **QUICK
    )
    assert type(grown) is Net and grown.final.out_channels == CLASSES + 1 and not grown.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in grown.parameters())
    image = torch.randn(1, 3, 64, 64)
    assert grown(image).shape == (1, CLASSES + 1, 64, 64)
    folder = RunFolder(tmp_path / "run")
    told = json.loads(folder.added.read_text())
    assert told["classes"] == [*OLD, "dots"] and told["held_out"]["images"] > 0
    assert set(told["held_out"]["classes"]["dots"]) == {"images", "precision", "recall"}
    page = folder.report.read_text()
    assert "--builder FILE.py:FUNCTION" in page and 'builder="FILE.py:FUNCTION"' in page
    assert 'wilson.load("FOLDER", builder="FILE.py:FUNCTION")' in (folder.model / "README.md").read_text()
    drawn = sorted(path.name for path in folder.step(1).pseudo_labels.iterdir())
    assert drawn == [f"{number}-{iteration:06d}.jpg" for number in range(4) for iteration in (3, 6)]
    assert not folder.step(1).progress.exists()
    assert "dots added to Net" in page and page.count("data:image/jpeg") >= 4 and "Crops of 64 pixels" in page
    from safetensors.torch import load_file

    state = load_file(folder.model / "model.safetensors")
    Net(CLASSES + 1).load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in grown.state_dict().items())


def test_grows_a_module_of_transformers(photographs, tmp_path):
    """Its own save_pretrained renames what it writes; the folder goes on through all of its lives."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [8, 8, 8, 8], "decoder_hidden_size": 8, "num_attention_heads": [1, 1, 1, 1]}
    config = transformers.SegformerConfig(**sizes, depths=[1] * 4, id2label=dict(enumerate(("wall", *OLD[1:]))))
    net = transformers.SegformerForSemanticSegmentation(config).eval()
    given: dict[str, Any] = {"without": photographs / "without", **QUICK, "epochs": 1, "out": tmp_path / "run"}
    options = {**given, "background": "wall"}
    grown = wilson.add_classes(net, {"dots": photographs / "dots"}, **options)
    again = wilson.add_classes(net, {"dots": photographs / "dots"}, **options, resume=True)
    image = torch.randn(1, 3, 64, 64)
    assert type(grown) is type(net) and grown(image).logits.shape[1] == CLASSES + 1 and not grown.training
    assert torch.equal(grown(image).logits, again(image).logits)
    assert list(again.config.id2label.values()) == ["wall", *OLD[1:], "dots"] and len(net.config.id2label) == CLASSES
    assert ModelCard.load(tmp_path / "run" / "model" / "README.md").data.library_name == "transformers"
    net.save_pretrained(tmp_path / "old")
    transformers.SegformerImageProcessor(image_mean=[0.1] * 3).save_pretrained(tmp_path / "old")
    options["out"] = tmp_path / "first"
    path = wilson.add_classes(tmp_path / "old", {"dots": photographs / "dots"}, **options)
    given["out"] = tmp_path / "second"
    path = wilson.add_classes(path, {"zigzag": photographs / "zigzag"}, **given)
    assert json.loads((path / "preprocessor_config.json").read_text())["image_mean"] == [0.1] * 3
    assert wilson.load(path).classes == ("background", *OLD[1:], "dots", "zigzag")


def test_new_classes_behind_the_names_are_noticed(tmp_path, capsys):
    command = ["add", "--to", "a.py:b", "--out", str(tmp_path / "run"), "--classes", *OLD, "dots=photos"]
    assert main(command) == 2
    assert "dots=photos was taken for a name of --classes, so put it first" in capsys.readouterr().err


def test_the_command_its_folder_and_prediction(photographs, tmp_path, capsys):
    build, weights = tmp_path / "mine.py", tmp_path / "mine.pt"
    build.write_text("from tests.support.foreign_models import Net\ndef build(): return Net()\n")
    torch.save(Net().state_dict(), weights)
    to = ["--to", f"{build}:build", "--weights", str(weights), "--classes", *OLD]
    options = ["--epochs", "1", "--batch", "4", "--crop", "64", "--workers", "0", "--device", "cpu"]
    classes = [f"dots={photographs / 'dots'}", f"zigzag={photographs / 'zigzag'}"]
    run = tmp_path / "run"
    assert main(["add", *classes, *to, *options, "--dry-run", "--out", str(run)]) == 0
    said = capsys.readouterr().out
    assert "Batches of 4 images" in said and f"with the weights of {weights}" in said and not run.exists()
    assert main(["add", *classes, *to[:2], *options, "--dry-run", "--out", str(run)]) == 0
    assert "with the weights that build() gave it (no --weights)" in capsys.readouterr().out
    assert main(["add", *classes, *to, *options, "--out", str(run)]) == 0, capsys.readouterr().err
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"try it: wilson predict PHOTOGRAPH --checkpoint {run / 'model'} --builder {build}:build"
    assert f"--builder {build}:build" in RunFolder(run).report.read_text()
    assert f'builder="{build}:build"' in (run / "model" / "README.md").read_text()
    image = next((photographs / "dots").iterdir())
    predict = ["predict", str(image), "--checkpoint", str(run), "--device", "cpu", "--out"]
    assert main([*predict, str(tmp_path / "p1")]) == 2
    assert "no code is run unless you name it" in capsys.readouterr().err
    assert main([*predict, str(tmp_path / "p2"), "--builder", f"{build}:build"]) == 0
    mask = np.asarray(Image.open(tmp_path / "p2" / f"{image.stem}.png"))
    assert mask.shape == (64, 64) and mask.max() <= CLASSES + 1
    assert main(["add", *classes, *to, *options, "--out", str(run)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["add", *classes, *to, *options, "--out", str(run), "--resume"]) == 0
    assert main(["add", *classes, *to, *options, "--out", str(run), "--overwrite"]) == 0, capsys.readouterr().err


def test_killed_before_the_report_it_is_finished_from_another_folder(photographs, tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    given = {"dots": photographs / "dots", "zigzag": photographs / "zigzag"}
    options = {**QUICK, "epochs": 1}
    monkeypatch.chdir(tmp_path)
    written = wilson.add_classes(own_checkpoint(tmp_path), given, out="run", **options)
    page = folder.report.read_text()
    folder.report.unlink()
    folder.step(1).state.touch()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = wilson.add_classes(own_checkpoint(tmp_path), given, out=folder.path, resume=True, **options)
    assert again == tmp_path / written and again.is_file()
    assert not folder.step(1).state.exists() and len(folder.report.read_text()) >= len(page)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # torchrun says neither --resume nor --overwrite
    assert wilson.add_classes(own_checkpoint(tmp_path), given, out=folder.path, overwrite=True, **options) == again


def test_photographs_that_come_between_are_noticed_on_resuming(photographs, tmp_path):
    shutil.copytree(photographs / "dots", tmp_path / "dots")
    given, options = {"dots": tmp_path / "dots"}, {**QUICK, "epochs": None, "out": tmp_path / "run", "names": OLD}
    options["without"] = photographs / "without"
    plan = make_plan(open_subject(Net(), classes=OLD), given, options["without"], None, choices.Given(batch=4, crop=64))
    with prepared(tmp_path / "run", plan.choices.config, _known(plan), resume=False, overwrite=False):
        pass
    shutil.copy(next((photographs / "zigzag").iterdir()), tmp_path / "dots" / "one more.png")
    with pytest.raises(
        UserError, match=r"the photographs of the new classes are not those of the run .10 then, 11 now"
    ):
        wilson.add_classes(Net(), given, resume=True, **options)


def own_checkpoint(folder: Path) -> Path:
    from tests.support.tiny_runs import save_tiny

    return save_tiny(folder / "checkpoint.pt")


def test_the_plan_says_what_is_learned_and_what_is_taken_for_granted(photographs, tmp_path, capsys):
    without, run = photographs / "without", {"out": tmp_path / "run", "dry_run": True, "device": "cpu"}
    held = open_photographs({"dots": photographs / "dots"}, without, OLD, 0)
    count = len(list(without.iterdir()))
    wilson.add_classes(Net(), {"dots": photographs / "dots"}, without=without, epochs=1, **run)
    said = capsys.readouterr().out
    assert "Its output 0 is taken for the background" in said and "so they have numbers (--classes" in said
    assert f"12 of dots and {count} without it; {len(held.held_out.names)} of them are held out" in said
    assert "1 epoch of" in said and "In the first" not in said
    assert "softmax cross-entropy (--output), on images normalised by the mean 0.485 0.456 0.406" in said
    assert "In 4 of the photographs it now sees" in said
    wilson.add_classes(own_checkpoint(tmp_path), {"dots": photographs / "dots"}, without=without, epochs=4, **run)
    said = capsys.readouterr().out
    assert "It learns dots." in said and "output 0" not in said
    assert "Crops of 32 pixels: what the model was trained at" in said
    assert "4 epochs of" in said and "In the first one only the localizer learns" in said


def test_grows_a_checkpoint_of_wilson(photographs, tmp_path):
    from tests.support.tiny_runs import save_tiny
    from wilson.checkpoint import Checkpoint

    saved = Checkpoint(save_tiny(tmp_path / "checkpoint.pt"))
    path = wilson.add_classes(
        tmp_path / "checkpoint.pt", {"tulip": photographs / "dots", "rose": photographs / "zigzag"},
        out=tmp_path / "run", epochs=1, batch=4, workers=0, device="cpu",
    )  # fmt: skip
    grown = Checkpoint(path)
    assert grown.task.class_names(grown.step) == (*saved.task.class_names(saved.step), "tulip", "rose")
    assert grown.step == saved.step + 1 and len(grown.results) == len(saved.results) + 1
    assert "--builder" not in RunFolder(tmp_path / "run").report.read_text()
    predictor = wilson.load(path, "cpu")
    assert predictor.classes[-2:] == ("tulip", "rose")
    image = next((photographs / "dots").iterdir())
    assert predictor.predict(image).shape == (64, 64)


def test_masks_tell_the_iou_before_and_after(photographs, tmp_path):
    from wilson.data.export import export

    export({"val": Synthetic("val", 6)}, tmp_path / "masked")
    names = Synthetic.classes[: 1 + 5]
    given = {"dots": photographs / "dots", "zigzag": photographs / "zigzag"}  # and mosaic, which it is not to know
    wilson.add_classes(
        Net(classes=6), given, out=tmp_path / "run", names=names, validation=tmp_path / "masked",
        **{**QUICK, "epochs": 1},
    )  # fmt: skip
    told = json.loads(RunFolder(tmp_path / "run").added.read_text())
    for when in ("before", "after"):
        assert set(told[when]["iou"]) == {*names, *given}
    assert told["before"]["miou"]["new"] == 0
    assert "With masks" in RunFolder(tmp_path / "run").report.read_text()
    (tmp_path / "mine.py").write_text(
        "from tests.support.foreign_models import Net\ndef build(): return Net(classes=6)\n"
    )
    again = evaluate_checkpoint(
        tmp_path / "run", str(tmp_path / "masked"), None, "cpu", None, builder=f"{tmp_path}/mine.py:build"
    )
    assert again["iou"] == pytest.approx(told["after"]["iou"])
    card = ModelCard.load(tmp_path / "run" / "model" / "README.md")
    assert {found.dataset_name for found in card.data.eval_results} == {"masked"}
    assert "Mean IoU in percent on masked: " in card.text


def test_coco_validation_list_is_found(photographs, tmp_path, capsys):
    write_instances(tmp_path, "val2017", {"a.jpg": [{"category_id": 7, "segmentation": box(0, 0, 4, 4)}]})
    given = {"dots": photographs / "dots", "zigzag": photographs / "zigzag"}
    options = {"validation": tmp_path, "out": tmp_path / "run", "dry_run": True, "device": "cpu"}
    wilson.add_classes(Net(), given, names=("background", "train", "b", "c"), **options)
    assert f"IoU is measured on 1 image of {tmp_path.name}." in capsys.readouterr().out
    with pytest.raises(UserError, match="none of its classes"):
        wilson.add_classes(Net(), given, names=OLD, **options)


def test_masks_without_a_class_that_the_model_knows_are_refused(photographs, tmp_path):
    from wilson.data.export import export

    export({"val": Synthetic("val", 6)}, tmp_path / "masked")
    given = {"dots": photographs / "dots", "zigzag": photographs / "zigzag"}  # the masks have these, too
    with pytest.raises(
        UserError, match=r"none of its classes .* among those that the model knows .class 1, .*--classes"
    ):
        wilson.add_classes(Net(), given, out=tmp_path / "run", validation=tmp_path / "masked", **QUICK)
    assert not (tmp_path / "run").exists()


def test_two_processes_say_the_plan_once_and_agree_on_the_folder(photographs, tmp_path, one_thread):
    def add(epochs: int, batch: int) -> tuple[str, str, str]:
        out = tmp_path / f"run-{os.environ['RANK']}"  # as TIME in the default name may differ
        given = {"dots": photographs / "dots", "zigzag": photographs / "zigzag"}
        options = {**QUICK, "epochs": epochs, "batch": batch}
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            try:
                return str(wilson.add_classes(start, given, out=out, **options)), said.getvalue(), ""
            except UserError as error:
                return "", said.getvalue(), str(error)

    start = own_checkpoint(tmp_path)
    (_, _, wrong), _ = in_processes(2, add, 1, 1)
    assert "a batch of 1 images cannot be shared out to 2 processes" in wrong
    (first, plan, _), (second, nothing, wrong) = in_processes(2, add, 1, 4)
    assert first == second == str(RunFolder(tmp_path / "run-0").step(1).checkpoint) and not wrong
    assert "Batches of 4 images" in plan and "Batches of" not in nothing and not (tmp_path / "run-1").exists()


def test_held_out_photographs_are_seen_whole(tmp_path):
    class Looking(Net):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(image.shape[2:]))
            return super().forward(image)

    seen: list[tuple[int, ...]] = []
    for name, shade in (("one", 40), ("two", 200)):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("RGB", (128, 32), (shade, number, 0)).save(tmp_path / name / f"{number}.png")
    given = {"one": tmp_path / "one", "two": tmp_path / "two"}
    options = {**QUICK, "crop": 32, "epochs": 1}
    wilson.add_classes(Looking(), given, out=tmp_path / "run", names=OLD, **options)
    folder = RunFolder(tmp_path / "run")
    assert (32, 128) in seen
    assert json.loads(folder.added.read_text())["held_out"]["images"] == 4
    assert Image.open(next(folder.pictures.glob("*-after.jpg"))).size == (128, 32)


@pytest.mark.slow
def test_resumed_after_a_kill_it_has_the_same_bits(photographs, tmp_path):
    (tmp_path / "mine.py").write_text("from tests.support.foreign_models import Net\ndef build(): return Net()\n")
    torch.save(Net().state_dict(), tmp_path / "mine.pt")

    def command(out: str, *more: str) -> list[str]:
        return [
            sys.executable, "-m", "wilson", "add", f"dots={photographs / 'dots'}", "--without",
            str(photographs / "without"), "--to", f"{tmp_path}/mine.py:build", "--weights", f"{tmp_path}/mine.pt",
            "--epochs", "3", "--batch", "4", "--workers", "0", "--device", "cpu", "--out", str(tmp_path / out), *more,
        ]  # fmt: skip

    subprocess.run(command("whole"), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    process = subprocess.Popen(command("killed"), cwd=ROOT, stdout=subprocess.DEVNULL)
    state = RunFolder(tmp_path / "killed").step(1).state
    while not state.exists() and process.poll() is None:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    far = json.loads(state.with_name("progress.json").read_text())
    assert far["epochs"] == 3 and 1 <= far["epoch"] <= 3
    assert 0 < far["iteration"] <= far["iterations"] == 9 and far["seconds_left"] >= 0
    subprocess.run(command("killed", "--resume"), check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    whole, killed = ((tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("whole", "killed"))
    assert whole == killed


@pytest.mark.parametrize(
    ("classes", "options", "match"),
    [
        ({}, {}, "no class was named"),
        ({"dots": "dots"}, {}, "a single class needs photographs without it"),
        ({"b": "dots", "d": "zigzag"}, {}, "known to the model already"),
        ({"dots": "dots", "DOTS": "zigzag"}, {}, "known to the model already"),
        ({"dots": "dots", "zigzag": "dots"}, {}, "the folder of two classes"),
        ({"dots": "nowhere", "zigzag": "zigzag"}, {}, "nowhere: no such folder"),
        ({"dots": "dots"}, {"without": "nowhere"}, "no such folder"),
        ({"dots": "dots"}, {"without": "without", "batch": 200}, "fewer than a batch"),
        ({"dots": "dots"}, {"without": "without", "batch": 1}, "a batch needs 3 images or more, got 1"),
        ({"dots": "dots"}, {"without": "without", "batch": 2}, "a batch needs 3 images or more, got 2"),
        ({"dots": "dots"}, {"without": "dots"}, "all 12 photographs are left out, as they show the new classes"),
        ({"dots": "dots", "zigzag": "zigzag"}, {"epochs": 0}, "epochs: expected 1 or more, got 0"),
    ],
)
def test_what_is_refused_before_anything_is_trained(photographs, tmp_path, classes, options, match):
    given = {name: photographs / folder for name, folder in classes.items()}
    options = {k: photographs / v if k == "without" else v for k, v in options.items()}
    with pytest.raises(UserError, match=match):
        wilson.add_classes(Net(), given, out=tmp_path / "run", names=OLD, **{**QUICK, **options})
    assert not (tmp_path / "run").exists()

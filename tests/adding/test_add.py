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
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import wilson
from tests.support.data_sets import box, write_instances
from tests.support.foreign_models import CLASSES, Net
from tests.support.processes import in_processes
from wilson.adding import choices, held_out, subject
from wilson.adding.add import _known, make_plan
from wilson.adding.first_look import first_look
from wilson.adding.photographs import open_photographs
from wilson.adding.subject import open_subject
from wilson.cli import main
from wilson.data.dataset import EpochSampler, MixedIn
from wilson.data.sources.base import class_sets
from wilson.data.sources.labelled import open_negatives
from wilson.data.sources.synthetic import Synthetic
from wilson.data.transforms import Normalization
from wilson.errors import UserError
from wilson.evaluation.evaluate import evaluate_checkpoint
from wilson.models import SegmentationModel
from wilson.models.foreign import builders
from wilson.run_folder import RunFolder
from wilson.runs.folder import prepared

OLD = ("background", "a", "b", "c")
ROOT = Path(__file__).parents[2]
QUICK: dict[str, Any] = {"epochs": 2, "batch": 4, "crop": 64, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """`dots/`, `zigzag/` and `without/`, a dozen small images in each."""
    out, source = tmp_path_factory.mktemp("photographs"), Synthetic("step", 60)
    kinds: dict[str, int] = {}
    for index, name in enumerate(source.names):
        shown = {source.classes[i] for i in source.class_ids(index)}
        place = next((c for c in ("dots", "zigzag") if shown & {"dots", "zigzag"} == {c}), "without")
        kinds[place] = kinds.get(place, 0) + 1
        if kinds[place] <= 12 and (place != "without" or ("dots" not in shown and "zigzag" not in shown)):
            (out / place).mkdir(exist_ok=True)
            source.image(index).save(out / place / f"{name}.png")
    return out


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


def test_the_preprocessing_of_a_folder_is_followed(tmp_path):
    def read(**values):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
        return subject._preprocessing(tmp_path)

    as_they_are = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    assert subject._preprocessing(tmp_path) == {}
    assert read(image_mean=[0.1] * 3, image_std=[0.2] * 3) == {"mean": (0.1,) * 3, "std": (0.2,) * 3}
    assert read(do_normalize=False, image_mean=[0.1] * 3, image_std=[0.2] * 3) == as_they_are
    assert read(do_rescale=True) == as_they_are
    assert read(do_normalize=True) == {}
    with pytest.raises(UserError, match="BGR"):
        read(do_flip_channel_order=True)


def test_what_does_not_apply_is_refused(tmp_path):
    from tests.support.tiny_runs import save_tiny

    saved, torn = save_tiny(tmp_path / "best.pt"), tmp_path / "mine.pt"
    torch.save(Net().state_dict(), torn)
    assert subject.open_subject(saved).names[0] == "background"
    with pytest.raises(UserError, match="no checkpoint of wilson"):
        subject.open_subject(torn)
    adapted = wilson.adapt(Net())
    for model, given, match in (
        (saved, {"background": "sky", "weights": torn}, "weights, background: not for"),
        (adapted, {"classes": OLD}, "names .*: not for"),
        (Net(), {"builder": "a.py:b", "nonsense": 1}, "builder, nonsense: not for a module; it takes background"),
        ("torchvision:fcn_resnet50", {"builder": "a.py:b"}, "builder: not for"),
    ):
        with pytest.raises(UserError, match=match):
            subject.open_subject(model, **given)
    named = subject.open_subject(Net(), features=None)
    assert named.finer(1).stride == subject.open_subject(Net()).finer(1).stride


def test_what_cannot_be_opened_says_what_would(tmp_path):
    code = tmp_path / "mine.py"
    code.write_text("import torch\ndef build(): return torch.nn.Identity()\n")
    for to, weights, match in (
        (code, None, r"name the function that returns the model, too, as in .*mine\.py:build"),
        (f"{code}:bild", None, "has no function bild; it has build$"),
        (f"{code}:build", tmp_path / "w.pt", r"w\.pt: no such file; give a state dict"),
        (tmp_path / "model.pt", None, r"model\.pt: no such file; give a checkpoint of wilson, or torchvision:NAME"),
        ("torchvison:fcn_resnet50", None, "no model there; expected torchvision:NAME"),
    ):
        with pytest.raises(UserError, match=match):
            subject.open_subject(to, weights)


def test_new_classes_behind_the_names_are_noticed(tmp_path, capsys):
    command = ["add", "--to", "a.py:b", "--out", str(tmp_path / "run"), "--classes", *OLD, "dots=photos"]
    assert main(command) == 2
    assert "dots=photos was taken for a name of --classes, so put it first" in capsys.readouterr().err


def test_the_first_look_counts_pixels(tmp_path):
    class Bright(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.least = torch.nn.Parameter(torch.zeros(()))

        def forward(self, image):
            bright = (image.mean(1) > self.least).float()
            return SimpleNamespace(logits=torch.stack([1 - bright, 0 * bright, bright], 1))

    folder = tmp_path / "shades"
    folder.mkdir()
    picture = np.full((64, 64, 3), 60, np.uint8)
    picture[:, :16] = 200  # a quarter is brighter than the mean of 0.5
    for number in range(2):
        Image.fromarray(picture).save(folder / f"{number}.png")
    source = open_negatives(folder, OLD)
    for mean, seen in ((0.5, "background 75 %, b 25 %"), (0.0, "b 100 %")):
        normalization, names = Normalization((mean,) * 3, (1,) * 3), ("background", "a", "b")
        line = first_look(cast(SegmentationModel, Bright()), source, normalization, 64, names)
        assert line.startswith(f"In 2 of the photographs it now sees {seen} of the pixels.")


def test_advice_follows_the_figures():
    figures = ((90, 90), (30, None), (90, 40), (None, None))
    good, rare, everywhere, unheld = ({"images": 9, "recall": r, "precision": p} for r, p in figures)
    assert held_out.advice({"good": good, "unheld": unheld}) == []
    missed, seen = held_out.advice({"good": good, "rare": rare, "all": everywhere})
    assert missed.startswith("rare is often missed") and seen.startswith("all is often seen where it is not")


def test_published_names_are_those_of_the_classes(monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setattr(builders, "build", lambda *_: Net(classes=21))
    assert subject.open_subject("torchvision:fcn_resnet50").names[:2] == ("background", "aeroplane")


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


def test_checkpoints_of_softmax_methods_stay_softmax(tmp_path):
    from tests.support.tiny_runs import save_tiny
    from wilson import checkpoint

    saved = checkpoint.Checkpoint(save_tiny(tmp_path / "checkpoint.pt"))
    opened = subject.open_subject(tmp_path / "checkpoint.pt")
    assert not opened.model.softmax
    for method in ("mib", "ilt"):
        config = replace(saved.config, method=method)
        checkpoint.save_model(saved.model(), config, saved.task, 1, [], tmp_path / "checkpoint.pt")
        opened = subject.open_subject(tmp_path / "checkpoint.pt")
        grown, task = opened.model.extended(1), opened.task(["rose"])
        assert opened.model.softmax and grown.softmax
        folder = RunFolder(tmp_path / method)
        folder.step(1).path.mkdir(parents=True)
        entry: dict[str, Any] = {"classes": [], "iou": {}, "miou": {}, "pixel_accuracy": None}
        path = opened.write(grown, replace(config, method="wilson"), task, entry, folder)
        assert subject.open_subject(path).model.softmax


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


def test_a_fifth_is_held_out_by_the_seed_alone(tmp_path):
    for name, count in (("many", 25), ("few", 9), ("none", 15)):
        (tmp_path / name).mkdir()
        for number in range(count):
            pixels = np.full((4, 4, 3), (number, ord(name[0]), 7), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    given = {"many": tmp_path / "many", "few": tmp_path / "few"}
    found = open_photographs(given, tmp_path / "none", ("background",), seed=0)
    again, other = (open_photographs(given, tmp_path / "none", ("background",), seed=s) for s in (0, 1))
    held = class_sets(found.held_out)
    assert held.count(frozenset({1})) == 5 and held.count(frozenset({2})) == 0 and held.count(frozenset()) == 3
    assert found.held_out.names == again.held_out.names != other.held_out.names
    assert len(found.training.names) == 29 and found.negatives is not None and len(found.negatives.names) == 12
    assert not set(found.held_out.names) & {*found.training.names, *found.negatives.names}
    assert found.counts == {"many": 25, "few": 9} and any("only 9" in note for note in found.notes)


def test_what_shows_a_new_class_or_is_tested_on_is_left_out(tmp_path):
    pixels = iter(range(256))
    for name in ("zebra", "okapi", "."):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        for number in range(6):
            Image.new("RGB", (4, 4), (next(pixels), 7, 7)).save(tmp_path / "photos" / name / f"{number}.png")
    photos = tmp_path / "photos"
    shutil.copy(photos / "zebra" / "0.png", photos / "copy.png")
    tested = open_negatives(photos / "okapi", ("background", "zebra"))
    (tmp_path / "tested").mkdir()
    shutil.copy(photos / "zebra" / "1.png", tmp_path / "tested" / "a.png")
    tested += open_negatives(tmp_path / "tested", tested.classes)
    found = open_photographs({"zebra": photos / "zebra"}, photos, ("background",), 0, tested)
    assert found.training.names == [f"zebra/{number}" for number in (0, 2, 3, 4, 5)] and found.counts == {"zebra": 5}
    assert found.negatives is not None and found.negatives.names == [str(number) for number in range(6)]
    assert [note.partition(": ")[2] for note in found.notes if "left out" in note] == [
        "1 of 6 photographs are left out, as the validation list holds them",
        "7 of 19 photographs are left out, as they show the new classes",
        "6 of 12 photographs are left out, as the validation list holds them",
    ]


def test_one_photograph_is_too_few(tmp_path, photographs):
    (tmp_path / "one").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "a.png")
    (tmp_path / "one" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="1 photograph can be used, expected at least 2"):
        open_photographs({"x": tmp_path / "one"}, photographs / "without", OLD, 0)


@pytest.mark.parametrize(
    ("crop", "own", "others", "taken"),
    [
        (512, 16, [8, 4], 16),  # wide enough
        (256, 16, [8, 4], 8),
        (256, 16, [4], 16),  # sixteen times the work, and the own map will do
        (64, 8, [4, 2], 2),  # the own map will not do
        (64, 8, [], 8),
    ],
)
def test_features_are_as_fine_as_photographs_need(crop, own, others, taken):
    def finer(most):
        return SimpleNamespace(stride=max((s for s in others if s <= most), default=min(others, default=own)))

    model: Any = SimpleNamespace(stride=own, finer=finer)
    assert choices.with_fine_features(model, crop).stride == taken


def test_settings_follow_the_model_and_the_photographs(photographs):
    found = open_photographs({"dots": photographs / "dots"}, photographs / "without", OLD, 0)

    def choose(model, stride=4, side=None, **given):
        model.feature_channels, asked = 12, choices.Given(**given)
        crop = choices.crop_for(stride, side, found.training, asked)
        parameters = sum(p.numel() for p in model.parameters())
        return choices.choose(model, stride, parameters, crop, found.training, found.negatives, asked)

    convolutional = choose(Net()).config
    assert convolutional.data.crop == 64 and convolutional.step.optimizer == "sgd" and convolutional.step.lr_head == 0.1
    assert convolutional.step.epochs == choices.MOST_EPOCHS and 0 < convolutional.step.warmup < choices.MOST_EPOCHS
    assert choose(Net(), stride=48).config.data.crop == 48 and choose(Net(), side=96).config.data.crop == 96
    assert "expect coarse outlines" in " ".join(choose(Net(), stride=8).reasons)
    transformer = torch.nn.TransformerEncoderLayer(64, 2)
    assert choose(transformer).config.step.optimizer == "adamw"
    huge = choose(torch.nn.Sequential(torch.nn.TransformerEncoderLayer(512, 2), torch.nn.Linear(3000, 3000)))
    assert huge.config.step.lr_encoder < choose(transformer).config.step.lr_encoder
    assert len(choose(Net()).reasons) >= 4 and "as you said" in " ".join(choose(Net(), epochs=3).reasons)
    small = choose(Net(), batch=4)
    assert small.config.step.freeze_norm and small.config.step.batch == 4
    for batch in range(3, 14):
        sampler = EpochSampler(len(found.training.names), 0, batch, [MixedIn(round(choices.NEGATIVES * batch), 3)])
        assert f"of {choices.counted(len(sampler) // batch, 'iteration')}" in " ".join(
            choose(Net(), batch=batch).reasons
        )


def test_the_number_of_epochs_has_its_reason():
    reasons = [choices._aim(epochs) for epochs in (8, 40, 300)]
    assert [next(word for word in ("least", "1200", "most") if word in reason) for reason in reasons] == [
        "least", "1200", "most"
    ]  # fmt: skip


def test_a_coarse_map_of_features_gives_way_to_what_the_classifier_reads(photographs, capsys, tmp_path):
    class Coarse(Net):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Sequential(*self.backbone, torch.nn.AvgPool2d(4))

        def forward(self, image):
            return self.up(self.final(self.up(self.head(self.backbone(image)), image)), image)

    given = {"dots": photographs / "dots", "zigzag": photographs / "zigzag"}
    options = {"out": tmp_path, "names": OLD, "dry_run": True, "device": "cpu"}
    wilson.add_classes(Coarse(), given, **options)
    assert "map of 64 x 64 features of stride 1" in capsys.readouterr().out
    wilson.add_classes(Coarse(), given, features="backbone", **options)
    assert "map of 4 x 4 features of stride 16, fewer than 16" in capsys.readouterr().out

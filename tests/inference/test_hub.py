"""Model folders: what `wilson save` writes is the model, for our commands and for the hub's own library."""

import json
from dataclasses import replace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

import wilson
from tests.support.tiny_runs import one_line
from wilson.adding.subject import open_subject
from wilson.checkpoint import Checkpoint, save_model
from wilson.cli import main
from wilson.config import DEMO
from wilson.data.export import export
from wilson.data.sources.synthetic import Synthetic
from wilson.data.tasks import Task
from wilson.models import new_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    task = Task.parse("5-3", Synthetic("val", 1).classes)
    config = replace(DEMO, data=replace(DEMO.data, crop=32, workers=0), model=replace(DEMO.model, head_channels=8))
    names = task.class_names(1)
    iou = {name: 10.0 * number for number, name in enumerate(names)}
    entry = {"step": 1, "classes": list(names), "iou": iou, "miou": {"old": 20.0, "new": 70.0, "all": 40.04},
             "pixel_accuracy": 50.0}  # fmt: skip
    path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    save_model(new_model(config.model, task.class_counts(1), 32, "none"), config, task, 1, [entry], path)
    return path


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "model"
    assert main(["save", str(checkpoint), "--out", str(path)]) == 0
    return path


def test_the_folder_is_the_checkpoint(checkpoint, folder):
    before, after = Checkpoint(checkpoint), Checkpoint(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (after.config, after.task, after.step, after.results) == (
        before.config, before.task, before.step, before.results,
    )  # fmt: skip
    assert before.weights.keys() == after.weights.keys()
    assert all(torch.equal(value, after.weights[name]) for name, value in before.weights.items())
    assert open_subject(folder).names == open_subject(checkpoint).names


def test_the_hubs_library_loads_and_writes_it(checkpoint, folder, tmp_path):
    model = wilson.HubModel.from_pretrained(folder)
    image = torch.randn(1, 3, 48, 40)
    assert torch.equal(model(image), Checkpoint(checkpoint).model()(image).logits)
    model.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    pixels = Synthetic("val", 1).image(0)
    expected = wilson.load(checkpoint, "cpu").predict(pixels)
    for predictor in (wilson.load(folder, "cpu"), wilson.Predictor(model, torch.device("cpu"))):
        assert (predictor.predict(pixels) == expected).all()


def test_push_to_hub_uploads_these_files(folder, monkeypatch):
    sent = {}

    def upload(self, *, repo_id, folder_path, **_):
        sent[repo_id] = sorted(path.name for path in folder_path.iterdir())

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Url", (), {"repo_id": repo_id}))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    wilson.HubModel.from_pretrained(folder).push_to_hub("me/textures")
    assert sent == {"me/textures": ["README.md", "config.json", "model.safetensors"]}


def test_the_card_tells_classes_scores_and_how_to_load(checkpoint, folder):
    card, saved = ModelCard.load(folder / "README.md"), Checkpoint(checkpoint)
    assert card.data.library_name == "wilson-seg" and card.data.pipeline_tag == "image-segmentation"
    assert card.data.license is None
    for class_id, name in zip(saved.task.seen(1), saved.task.class_names(1), strict=True):
        assert f"| {class_id} | {name} | `#" in card.text
    assert 'wilson.load("FOLDER")' in card.text
    assert "old 20.0, new 70.0, all 40.0" in card.text and "| 80.0 |" in card.text
    assert {found.metric_name: found.metric_value for found in card.data.eval_results} == {
        "mIoU, old classes": 20, "mIoU, new classes": 70, "mIoU, all classes": 40,
    }  # fmt: skip


def test_commands_take_the_folder(checkpoint, folder, tmp_path, capsys):
    export({"val": Synthetic("val", 4)}, tmp_path / "data")
    said = []
    for model in (checkpoint, folder):
        assert main(["evaluate", str(model), "--root", str(tmp_path / "data"), "--device", "cpu"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["export", str(folder), "--out", str(tmp_path / "model.pt2")]) == 0
    photo = str(next((tmp_path / "data" / "JPEGImages").iterdir()))
    assert main(["predict", photo, "--checkpoint", str(folder), "--out", str(tmp_path / "masks")]) == 0


def test_mistakes_are_one_line(folder, checkpoint, tmp_path, capsys):
    assert main(["save", str(checkpoint), "--out", str(folder)]) == 2
    assert "is not empty" in one_line(capsys)
    broken = tmp_path / "broken"
    assert main(["save", str(folder), "--out", str(broken)]) == 0
    capsys.readouterr()
    whole = (broken / "config.json").read_text()
    for wrong in ("{", "[]", json.dumps({**json.loads(whole), "format": 9}), whole.replace('"settings"', '"x"')):
        (broken / "config.json").write_text(wrong)
        assert main(["evaluate", str(broken)]) == 2
        assert "not the configuration of a model" in one_line(capsys)
    (broken / "config.json").write_text(whole)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-9])
    assert main(["evaluate", str(broken)]) == 2
    assert "not a readable state dict" in one_line(capsys)

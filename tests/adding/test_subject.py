"""Which models can get classes, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import wilson
from tests.support.foreign_models import Net
from wilson.adding import subject
from wilson.errors import UserError
from wilson.models.foreign import builders
from wilson.run_folder import RunFolder

OLD = ("background", "a", "b", "c")


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


def test_published_names_are_those_of_the_classes(monkeypatch):
    pytest.importorskip("torchvision")
    monkeypatch.setattr(builders, "build", lambda *_: Net(classes=21))
    assert subject.open_subject("torchvision:fcn_resnet50").names[:2] == ("background", "aeroplane")


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

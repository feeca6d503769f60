"""Weights merged after a step: the equation, and what a run makes of it."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.support.tiny_runs import QUICK, same, weights
from wilson.runs.run import run
from wilson.training.merging import merge_weights
from wilson.training.state import TrainingState


class Model(nn.Module):
    def __init__(self, classifiers):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)
        self.heads = nn.ModuleList(nn.Conv2d(2, 3, 1) for _ in range(classifiers))


def test_equation():
    old, model = Model(1), Model(2)
    for parameter in (*old.parameters(), *model.parameters()):
        nn.init.normal_(parameter)
    old.norm.running_mean.fill_(2)
    old.norm.num_batches_tracked.fill_(5)
    before, after = ({k: v.clone() for k, v in m.state_dict().items()} for m in (old, model))
    merge_weights(model, old, new_classes=3, old_classes=5)
    w = math.sqrt(3 / 8)
    for name, value in model.state_dict().items():
        if name.startswith("heads.1") or name == "norm.num_batches_tracked":
            assert torch.equal(value, after[name]), name
        else:
            torch.testing.assert_close(value, (1 - w) * before[name] + w * after[name])
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())


class StopHereError(Exception):
    pass


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(QUICK, tmp_path_factory.mktemp("plain") / "run")


def test_a_run_ends_each_step_with_merged_weights_and_their_results(plain, tmp_path, monkeypatch):
    config = replace(QUICK, weight_merge="ewf")
    merged = run(config, tmp_path / "ewf")
    assert same(weights(plain, 0), weights(merged, 0))
    before, after, mixed = weights(plain, 0), weights(plain, 1), weights(merged, 1)
    w = math.sqrt(3 / 8)  # 5-3
    name = next(name for name, value in before.items() if value.is_floating_point() and value.dim() == 4)
    torch.testing.assert_close(mixed[name], (1 - w) * before[name] + w * after[name])
    results = [json.loads((folder / "results.json").read_text())["steps"][1] for folder in (plain, merged)]
    assert results[0]["localizer"]["iou"] != results[1]["localizer"]["iou"]  # of the merged model's features

    keep = TrainingState.keep  # a run that stops once all is learned merges after it goes on

    def stopping(self, epoch):
        keep(self, epoch)
        raise StopHereError

    first = run(config, tmp_path / "again", steps=[0])
    monkeypatch.setattr(TrainingState, "keep", stopping)
    with pytest.raises(StopHereError):
        run(config, first, resume=True)
    monkeypatch.setattr(TrainingState, "keep", keep)
    run(config, first, resume=True)
    assert same(weights(first, 1), mixed)

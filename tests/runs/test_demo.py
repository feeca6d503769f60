"""What the demo promises, from real training, and its control: with wrong image-level labels nothing new is learned."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_runs import checkpoint_of
from wilson.checkpoint import Checkpoint
from wilson.config import DEMO
from wilson.runs.demo import demo
from wilson.runs.experiment import Experiment
from wilson.runs.run import run

pytestmark = pytest.mark.slow


def last(folder, step):
    return Checkpoint(checkpoint_of(folder, step)).results[-1]["miou"]


def test_demo_keeps_old_classes_and_learns_new_ones_but_not_from_shuffled_labels(tmp_path, monkeypatch):
    out = tmp_path / "demo"
    demo(DEMO, out)
    base, finetune, wilson = last(out / "base", 0), last(out / "finetune", 1), last(out / "wilson", 1)
    assert base["new"] >= 60  # the old classes, when they were new
    assert wilson["old"] >= base["new"] - 5
    assert wilson["new"] >= 45
    assert wilson["old"] >= finetune["old"] + 30

    truth = Experiment.training_set

    def shuffled(self, step):
        """The same images and the same label vectors, but not together."""
        dataset = truth(self, step)
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))
        dataset.labels = dataset.labels[order]
        return dataset

    monkeypatch.setattr(Experiment, "training_set", shuffled)
    control = run(DEMO, tmp_path / "control", steps=[1], start=checkpoint_of(out / "base", 0))
    assert last(control, 1)["new"] < wilson["new"] / 2

"""Our training beside the published one, written out: losses, weights and statistics of four iterations in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import published_training as published
from tests.support.tiny_runs import TINY
from wilson import checkpoint
from wilson.checkpoint import Checkpoint
from wilson.methods.base import WeaklySupervised
from wilson.models import new_model
from wilson.run_folder import RunFolder
from wilson.runs.experiment import Experiment
from wilson.training import loop
from wilson.training.cost import Cost

# 18 images of the step in batches of 8: two iterations an epoch
SHORT = replace(TINY, base=replace(TINY.base, epochs=2, batch=16), step=replace(TINY.step, epochs=2, warmup=None))
METHODS = {
    "wilson": published.wilson,
    "finetune-pixel": published.finetune_pixel,
    "lwf": published.lwf,
    "lwf-mc": published.lwf_mc,
    "ilt": published.ilt,
    "mib": published.mib,
    "joint": published.supervised,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def exactly(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_four_iterations_are_the_published_ones(tmp_path, monkeypatch, name):
    """The first two in WILSON's warm-up. Methods that learn from masks have none, and see pixels of 255."""
    config = replace(SHORT, method=name)
    if name == "wilson":
        config = replace(config, step=replace(config.step, warmup=1))
    if name == "joint":  # 42 images, those of both steps
        config = replace(config, step=replace(config.step, batch=20))
    experiment = Experiment.open(config)
    start = base_step(experiment, tmp_path)
    torch.manual_seed(5)  # a localizer of this seed is sure of pixels of every class in some images, so SSS counts them
    method = experiment.build_method(1, start).double()
    localizer = method.localizer if isinstance(method, WeaklySupervised) else None
    if localizer is not None:
        with torch.no_grad():
            localizer[-1].weight.mul_(30)  # type: ignore[operator]
    trainer = published.Trainer(
        METHODS[name],
        method.model,
        getattr(method, "old", None),
        localizer,
        *experiment.normalization,
        rates=(config.step.lr_encoder, config.step.lr_head),
        total=4,
        warmup=2 if name == "wilson" else 0,
    )
    parts = [method.model, localizer] if localizer is not None else [method.model]
    original_batches, original_measured = loop.batches, loop.measured
    seen: list[tuple[Any, list[Tensor]]] = []
    losses: list[dict[str, float]] = []

    def batches(loaded, device, normalization):
        for batch in original_batches(loaded, device, normalization):
            rgb = batch["rgb"].double()
            batch = {**batch, "rgb": rgb, "image": normalization(rgb), "labels": batch["labels"].double()}
            if "mask" in batch:
                batch["mask"][:, :9] = 255
            seen.append((batch, published.states(parts)))
            yield batch

    def measured(norm, values):
        losses.append({key: value.item() for key, value in values.items() if key != "total"})
        return original_measured(norm, values)

    monkeypatch.setattr(loop, "batches", batches)
    monkeypatch.setattr(loop, "measured", measured)
    folder = RunFolder(tmp_path / "run").step(1)
    folder.path.mkdir(parents=True)
    loop.fit(
        method, experiment.training_set(1), config, config.for_step(1), folder, experiment.normalization,
        lambda board, iteration: None, Cost(folder, torch.device("cpu"), False), resume=False, title="",
    )  # fmt: skip

    after = [*[weights for _, weights in seen[1:]], published.states(parts)]
    assert len(seen) == len(losses) == 4
    for (batch, _), ours, weights in zip(seen, losses, after, strict=True):
        exactly(ours, trainer.iteration(batch))
        exactly(weights, published.states(trainer.parts))
    if name == "wilson":
        assert [set(terms) for terms in losses[1:3]] == [{"cls", "loc", "enc"}, {"cls", "loc", "enc", "sss", "seg"}]
        assert max(terms["sss"] for terms in losses[2:]) > 0


def base_step(experiment: Experiment, folder) -> Checkpoint:
    """A model of the base step whose answers differ from pixel to pixel."""
    torch.manual_seed(5)
    config = experiment.config
    model = new_model(config.model, experiment.task.class_counts(0), config.data.crop, "none")
    with torch.no_grad():
        model.classifiers[0].weight.mul_(5)  # type: ignore[operator]
    checkpoint.save_model(model, config, experiment.task, 0, [], folder / "base.pt")
    return Checkpoint(folder / "base.pt")

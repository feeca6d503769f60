"""Every method through a tiny real step, and what the training images tell it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import tiny_runs
from tests.support.tiny_runs import checkpoint_of, same, weights
from wilson.errors import UserError
from wilson.methods import METHODS
from wilson.runs.experiment import Experiment
from wilson.runs.run import run
from wilson.training import loop

TINY = replace(tiny_runs.TINY, base=replace(tiny_runs.TINY.base, epochs=1), step=replace(tiny_runs.TINY.step, epochs=2))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The checkpoint of a base step."""
    return checkpoint_of(run(TINY, tmp_path_factory.mktemp("base") / "run", steps=[0]), 0)


@pytest.fixture(scope="module")
def saliency(tmp_path_factory):
    """A grey map for each training image, whose name it bears."""
    folder = tmp_path_factory.mktemp("saliency")
    for name in Experiment.open(TINY).training.names:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)).save(
            folder / f"{name}.png"
        )
    return folder


def one_step(method, start, out, saliency=None):
    config = replace(TINY, method=method, data=replace(TINY.data, saliency=saliency and str(saliency)))
    out = run(config, out, steps=[1], start=start)
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("method", ["eps", "mib"])
def test_a_step_of_a_rival_and_of_a_pixel_supervised_method(start, saliency, tmp_path, method):
    results = one_step(method, start, tmp_path / "run", saliency)
    assert results["method"] == method and [step["step"] for step in results["steps"]] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"offline", "eps", "mib"}))
def test_a_step_of_every_other_method(start, tmp_path, method):
    results = one_step(method, start, tmp_path / "run")
    assert results["method"] == method and len(results["steps"]) == 2


@pytest.mark.slow
def test_plop_resumes_with_its_thresholds(start, tmp_path, monkeypatch):
    whole = run(replace(TINY, method="plop"), tmp_path / "whole", steps=[1], start=start)
    original, calls = loop.gradient_norm, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "gradient_norm", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(replace(TINY, method="plop"), tmp_path / "cut", steps=[1], start=start)
    monkeypatch.setattr(loop, "gradient_norm", original)
    cut = run(replace(TINY, method="plop"), tmp_path / "cut", steps=[1], start=start, resume=True)
    assert same(weights(whole, 1), weights(cut, 1))


@pytest.mark.parametrize(
    ("method", "channels"), [("finetune-pixel", {0, 6, 7, 8}), ("joint", set(range(9))), ("wilson", None)]
)
def test_masks_that_a_method_sees(method, channels):
    """A step's masks tell its classes alone; joint sees all classes so far, on all their images."""
    config = replace(TINY, method=method, data=replace(TINY.data, train_images=200))
    dataset = Experiment.open(config).training_set(1)
    samples = [dataset[i] for i in range(0, len(dataset), 4)]
    if channels is None:
        assert all("mask" not in sample for sample in samples)
    else:
        assert set(torch.cat([sample["mask"].unique() for sample in samples]).tolist()) == channels
    one_step = len(Experiment.open(replace(config, method="wilson")).training_set(1))
    assert len(dataset) > one_step if method == "joint" else len(dataset) == one_step


def test_saliency_is_cut_like_the_mask(tmp_path):
    """With the masks as saliency maps, both come out alike from every crop."""
    config = replace(TINY, method="eps", data=replace(TINY.data, saliency=str(tmp_path)))
    source = Experiment.open(TINY).training
    for index, name in enumerate(source.names):
        Image.fromarray(np.asarray(source.mask(index))).save(tmp_path / f"{name}.png")
    dataset = Experiment.open(config).training_set(1)
    dataset.dense = True
    for key in [(0, 0), (1, 0), (3, 2)]:
        sample = dataset[key]
        assert sample["saliency"].dtype == torch.float32 and sample["saliency"].max() <= 1
        ids = (sample["saliency"] * 255).round().long()
        assert torch.equal(dataset.mask_channels[ids], sample["mask"]) and len(ids.unique()) > 1


def test_saliency_that_is_missing_or_does_not_fit(start, saliency, tmp_path):
    with pytest.raises(UserError, match=r"eps learns from saliency maps.*--data\.saliency"):
        one_step("eps", start, tmp_path / "a")
    with pytest.raises(UserError, match=r"no such saliency map \(\d+ of \d+ images have none\)"):
        one_step("eps", start, tmp_path / "a", tmp_path)
    dataset = Experiment.open(
        replace(TINY, method="eps", data=replace(TINY.data, saliency=str(saliency)))
    ).training_set(1)
    name = dataset.source.names[dataset.indices[0]]
    dataset.saliency.folder = tmp_path
    Image.new("L", (9, 9)).save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match="its saliency map 9x9"):
        dataset[0]
    Image.new("P", (32, 32)).save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match="expected a grey image"):
        dataset[0]


@pytest.mark.parametrize("warmup", [0, 2])
def test_a_rival_needs_epochs_for_both_of_its_stages(start, tmp_path, warmup):
    config = replace(TINY, method="cam", step=replace(TINY.step, warmup=warmup))
    with pytest.raises(UserError, match=r"--step\.warmup from 1 to 1"):
        run(config, tmp_path / "run", steps=[1], start=start)
    assert not (tmp_path / "run").exists()

"""Every method through a tiny real step, and what the training images tell it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import tiny_runs
from tests.support.tiny_runs import checkpoint_of, losses, same, weights
from wilson.data.similarity import write_similarity
from wilson.data.sources.prior_maps import Maps, write_maps
from wilson.errors import UserError
from wilson.methods import METHODS, Rasp, Settings, Supervised
from wilson.models import build_segmenter
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


@pytest.fixture(scope="module")
def similarity(tmp_path_factory):
    """A table between the names of all classes, in another order than the task's."""
    classes = Experiment.open(TINY).task.classes[::-1]
    table = torch.rand(len(classes), len(classes), generator=torch.Generator().manual_seed(0)) + 0.1
    file = tmp_path_factory.mktemp("names") / "table.npz"
    write_similarity(file, classes, table)
    return file


def one_step(method, start, out, saliency=None, **data):
    data = {key: str(place) for key, place in {"saliency": saliency, **data}.items() if place}
    config = replace(TINY, method=method, data=replace(TINY.data, **data))
    out = run(config, out, steps=[1], start=start)
    return json.loads((out / "results.json").read_text())


@pytest.mark.parametrize("method", ["eps", "mib"])
def test_a_step_of_a_rival_and_of_a_pixel_supervised_method(start, saliency, tmp_path, method):
    results = one_step(method, start, tmp_path / "run", saliency)
    assert results["method"] == method and [step["step"] for step in results["steps"]] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"offline", "eps", "mib"}))
def test_a_step_of_every_other_method(start, tmp_path, similarity, method):
    results = one_step(method, start, tmp_path / "run", similarity=similarity)
    assert results["method"] == method and len(results["steps"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["plop", "sdr", "rasp"])
def test_a_method_resumes_with_what_it_keeps(start, tmp_path, similarity, monkeypatch, method):
    config = replace(TINY, method=method, data=replace(TINY.data, similarity=str(similarity)))
    whole = run(config, tmp_path / "whole", steps=[1], start=start)
    original, calls = loop.gradient_norm, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(loop, "gradient_norm", interrupting)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut", steps=[1], start=start)
    monkeypatch.setattr(loop, "gradient_norm", original)
    cut = run(config, tmp_path / "cut", steps=[1], start=start, resume=True)
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


def test_a_step_with_the_names_of_the_classes(start, tmp_path, similarity):
    one_step("rasp", start, tmp_path / "run", similarity=similarity)
    names = [value for _, value in losses(tmp_path / "run" / "step-1")["loss/names"]]
    assert len(names) > 1 and all(0 < value < 2 for value in names)


@pytest.mark.slow
def test_several_steps_with_names_and_maps(tmp_path, similarity, maps):
    """Each step takes the part of the table for its classes, and the maps of its new ones."""
    data = replace(TINY.data, similarity=str(similarity), prior=str(maps))
    weighing = replace(TINY.losses, names_pooling=True)
    config = replace(TINY, method="rasp", task="1,2,3,4/5,6/7,8", data=data, losses=weighing)
    out = run(config, tmp_path / "run")
    for step in (1, 2):
        curves = losses(out / f"step-{step}")
        assert {"loss/names", "loss/maps"} <= curves.keys()
    assert len(json.loads((out / "results.json").read_text())["steps"]) == 3


def test_the_table_is_in_the_order_of_the_task(similarity):
    config = replace(TINY, method="rasp", task="1,2/5,3", data=replace(TINY.data, similarity=str(similarity)))
    experiment = Experiment.open(config)
    ours, stored = experiment.similarity, np.load(similarity)["similarity"][::-1, ::-1]
    assert ours is not None
    assert ours.shape == (5, 5) and ours[3, 0] == stored[5, 0] and ours[4, 2] == stored[3, 2]
    old = Supervised(build_segmenter("small_resnet", 4, "none", 8, [3], 32, (2,))).model
    assert torch.equal(Rasp(old.extended(2), old, Settings(similarity=ours)).similarity, ours)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda names, table: (names, table[:-1]), r"expected a table \(9, 9\), a row and a column.*got \(8, 9\)"),
        (lambda names, table: (names[:-1], table[:-1, :-1]), "lacks the class"),
        (lambda names, table: (names, table.index_fill(1, torch.tensor(4), float("nan"))), "is nan, expected a finite"),
        (lambda names, table: (names, 0 * table), "and background is 0.0, expected a positive"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(start, tmp_path, spoil, text):
    names = Experiment.open(TINY).task.classes
    write_similarity(tmp_path / "table.npz", *spoil(names, torch.ones(len(names), len(names))))
    with pytest.raises(UserError, match=text) as caught:
        one_step("rasp", start, tmp_path / "run", similarity=tmp_path / "table.npz")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_rasp_needs_a_table(start, tmp_path):
    with pytest.raises(UserError, match=r"method rasp learns from the names.*--data\.similarity"):
        one_step("rasp", start, tmp_path / "run")
    (tmp_path / "table.npz").write_text("no table")
    with pytest.raises(UserError, match=r"table\.npz: is no table of similarity: .*wilson prior names"):
        one_step("rasp", start, tmp_path / "run", similarity=tmp_path / "table.npz")


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Maps of all classes for each training image."""
    folder, experiment = tmp_path_factory.mktemp("maps"), Experiment.open(TINY)
    rng, classes = np.random.default_rng(0), list(experiment.task.classes[1:])
    for name in experiment.training.names:
        write_maps(folder / f"{name}.npz", Maps(rng.integers(0, 256, (len(classes), 8, 8), np.uint8), classes, ""))
    return folder


@pytest.fixture(scope="module")
def regions(tmp_path_factory):
    """Random squares for each training image."""
    folder, experiment = tmp_path_factory.mktemp("regions"), Experiment.open(TINY)
    rng = np.random.default_rng(0)
    for index, name in enumerate(experiment.training.names):
        ids = Image.fromarray(rng.integers(1, 256, (8, 8), np.uint8))
        ids.resize(experiment.training.image(index).size, Image.Resampling.NEAREST).save(folder / f"{name}.png")
    return folder


def test_a_step_with_maps_as_a_loss(start, tmp_path, maps):
    one_step("wilson", start, tmp_path / "run", prior=maps)
    values = [value for _, value in losses(tmp_path / "run" / "step-1")["loss/maps"]]
    assert len(values) > 1 and all(0 < value < 2 for value in values)


def test_a_step_with_maps_mixed_in_learns_something_else(start, tmp_path, maps):
    mixing = replace(TINY.losses, prior_use="mix", prior_weight=0.8)
    config = replace(TINY, losses=mixing, data=replace(TINY.data, prior=str(maps)))
    found = {
        name: losses(run(changed, tmp_path / name, steps=[1], start=start) / "step-1")
        for name, changed in {"plain": TINY, "mixed": config}.items()
    }
    assert found["mixed"].keys() == found["plain"].keys()
    assert found["mixed"]["loss/cls"][0] == found["plain"]["loss/cls"][0]
    assert found["mixed"]["loss/seg"][0] != found["plain"]["loss/seg"][0]
    no_merge = replace(config, losses=replace(mixing, merge=False))
    with pytest.raises(UserError, match=r"prior-use mix needs the merge"):
        run(no_merge, tmp_path / "none", steps=[1], start=start)


def test_missing_and_bad_maps_stop_before_training(start, tmp_path, maps):
    with pytest.raises(UserError, match=r"no such file of maps \((\d+) of \1 images have none\)"):
        one_step("wilson", start, tmp_path / "run", prior=tmp_path)
    shutil.copytree(maps, tmp_path / "maps")
    dataset = Experiment.open(TINY).training_set(1)
    bad = tmp_path / "maps" / f"{dataset.source.names[dataset.indices[-1]]}.npz"
    bad.write_text("no maps")
    with pytest.raises(UserError, match=f"{bad.name}: is no file of maps"):
        one_step("wilson", start, tmp_path / "run", prior=tmp_path / "maps")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("warmup", [0, 2])
def test_a_rival_needs_epochs_for_both_of_its_stages(start, tmp_path, warmup):
    config = replace(TINY, method="cam", step=replace(TINY.step, warmup=warmup))
    with pytest.raises(UserError, match=r"--step\.warmup from 1 to 1"):
        run(config, tmp_path / "run", steps=[1], start=start)
    assert not (tmp_path / "run").exists()


def test_a_step_with_regions(start, tmp_path, regions):
    """The vote changes what SEG learns; a file that does not cover its image stops the run before training."""
    found = {
        name: losses(run(config, tmp_path / name, steps=[1], start=start) / "step-1")
        for name, config in {
            "plain": TINY,
            "voted": replace(TINY, data=replace(TINY.data, regions=str(regions))),
        }.items()
    }
    assert found["voted"]["loss/cls"][0] == found["plain"]["loss/cls"][0]
    assert found["voted"]["loss/seg"][0] != found["plain"]["loss/seg"][0]
    shutil.copytree(regions, tmp_path / "holes")
    dataset = Experiment.open(TINY).training_set(1)
    name = dataset.source.names[dataset.indices[-1]]
    Image.new("L", dataset.source.image(dataset.indices[-1]).size).save(tmp_path / "holes" / f"{name}.png")
    with pytest.raises(UserError, match=f"{name}.png: .* pixels are of no region"):
        one_step("wilson", start, tmp_path / "run", regions=tmp_path / "holes")
    assert not (tmp_path / "run" / "step-1").exists()

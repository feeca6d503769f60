"""Evaluation: what is counted, whole images, several views, the localizer, and the figures made of it."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.support.data_sets import CLASSES, mask_of, write_voc
from tests.support.tiny_runs import CPU
from wilson import checkpoint, ops
from wilson.checkpoint import Checkpoint
from wilson.cli import main
from wilson.config import DEMO
from wilson.config.masks import VOID
from wilson.data import opening
from wilson.data.loading import Batch
from wilson.data.tasks import Task
from wilson.errors import UserError
from wilson.evaluation.evaluate import evaluate_checkpoint, evaluate_step
from wilson.evaluation.metrics import confusion_matrices, scalars, scores, summary
from wilson.evaluation.segment import localize, segment
from wilson.evaluation.windows import Window, sliding
from wilson.inference.exported import Description
from wilson.inference.predict import Predictor
from wilson.methods import Finetune, Settings, Supervised
from wilson.models import Prediction, SegmentationModel, build_segmenter


class Convolution(SegmentationModel):
    """A model that tells left from right and near from far: 4 classes at half the image's size."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 5, stride=2, padding=2)

    def forward(self, image):
        return Prediction(3 * self.layer(image), image)


def straightforward(model, image, size, views):
    total = torch.zeros(())
    for scale, mirror in views:
        seen = F.interpolate(image, scale_factor=scale, mode="bilinear", antialias=True) if scale != 1 else image
        logits = model(torch.flip(seen, [3]) if mirror else seen).logits
        logits = torch.flip(logits, [3]) if mirror else logits
        total = total + F.interpolate(logits, size=size, mode="bilinear").softmax(1)
    return (total / len(views)).argmax(1)


@pytest.mark.parametrize(
    ("scales", "flip", "views"),
    [
        ((1.0,), False, [(1, False)]),
        ((1.0,), True, [(1, False), (1, True)]),
        ((0.5, 1.0, 1.5), False, [(0.5, False), (1, False), (1.5, False)]),
        ((0.5, 2.0), True, [(0.5, False), (0.5, True), (2, False), (2, True)]),
    ],
)
def test_the_softmax_of_all_views_is_averaged(scales, flip, views):
    model, image, mask = Convolution(), torch.randn(3, 3, 16, 24), torch.zeros(3, 33, 47)
    with torch.no_grad():
        found = segment(model, image, mask, scales=scales, flip=flip)
        expected = straightforward(model, image, (33, 47), views)
        alone = straightforward(model, image, (33, 47), [(1, False)])
    assert torch.equal(found.long(), expected)
    assert len(views) == 1 or not torch.equal(expected, alone)  # the views matter


class Counting(Convolution):
    """The same model; it keeps the shapes that it saw."""

    classes = 4

    def __init__(self):
        super().__init__()
        self.saw = []

    def forward(self, image):
        self.saw.append(tuple(image.shape))
        return super().forward(image)


@torch.no_grad()
def test_the_logits_of_windows_are_averaged_where_they_overlap():
    model, image = Counting(), torch.randn(2, 3, 20, 27)
    total, count = torch.zeros(2, 4, 20, 27), torch.zeros(20, 27)
    for top in (0, 6, 8):  # 12 pixels every 6; the last one ends at the border
        for left in (0, 6, 12, 15):
            rows, columns = slice(top, top + 12), slice(left, left + 12)
            logits = model(image[:, :, rows, columns]).logits
            total[:, :, rows, columns] += F.interpolate(logits, size=(12, 12), mode="bilinear")
            count[rows, columns] += 1
    assert count.min() == 1 and count.max() > 4
    model.saw.clear()
    torch.testing.assert_close(sliding(model, image, Window(12, 6)), total / count)
    assert model.saw == [(2, 3, 12, 12)] * 12  # two windows at once
    mask = torch.zeros(2, 40, 54)
    expected = F.interpolate(total / count, size=(40, 54), mode="bilinear").argmax(1)
    found = segment(model, image, mask, window=Window(12, 6))
    assert (found == expected).double().mean() > 0.999  # rounding
    assert (found != segment(model, image, mask)).any()


@torch.no_grad()
def test_a_window_larger_than_the_image_sees_all_of_it():
    model, image = Counting(), torch.randn(1, 3, 16, 40)
    for window, shapes in ((Window(64, 32), [(1, 3, 16, 40)]), (Window(24, 24), [(1, 3, 16, 24)] * 2)):
        model.saw.clear()
        sliding(model, image, window)
        assert model.saw == shapes


@torch.no_grad()
def test_windows_slide_over_every_view():
    model, image, mask = Counting(), torch.randn(1, 3, 16, 24), torch.zeros(1, 16, 24)
    segment(model, image, mask, scales=(0.5, 1.0), flip=True, window=Window(12, 12))
    assert model.saw == [(1, 3, 8, 12)] * 2 + [(1, 3, 12, 12)] * 8
    found, expected = (segment(model, image, mask, flip=True, window=each) for each in (Window(99, 99), None))
    assert (found == expected).double().mean() > 0.99  # rounding


def test_with_flip_the_mirrored_image_has_the_mirrored_classes():
    model, image, mask = Convolution(), torch.randn(1, 3, 17, 25), torch.zeros(1, 17, 25)
    with torch.no_grad():
        one = segment(model, image, mask, flip=True)
        other = segment(model, image.flip(3), mask, flip=True)
        assert torch.equal(one.flip(2), other)
        assert not torch.equal(segment(model, image, mask).flip(2), segment(model, image.flip(3), mask))


def test_the_confusion_matrix_counts_each_pixel_once_and_leaves_the_mode():
    class Fixed(SegmentationModel):
        def __init__(self):
            super().__init__()
            self.place = torch.nn.Parameter(torch.zeros(()))  # tells the device

        def forward(self, image):
            assert not self.training
            return Prediction(image, image)

    logits = F.one_hot(torch.tensor([[[0, 1], [2, 2]], [[1, 1], [0, 2]]]), 3).permute(0, 3, 1, 2).float()
    masks = torch.tensor([[[0, 1], [1, 2]], [[VOID, 0], [0, 2]]])
    batches: list[Batch] = [{"image": logits[i : i + 1], "mask": masks[i : i + 1]} for i in range(2)]
    model = Fixed().train()
    (matrix,) = confusion_matrices(model, batches, 3, [partial(segment, model)])
    assert matrix.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 2]]
    assert model.training


def test_means_with_and_without_background():
    matrix = torch.tensor([[6, 2, 0, 0], [0, 4, 0, 0], [4, 0, 4, 0], [0, 0, 0, 0]])
    entry = scores(matrix, ["background", "a", "b", "c"], old=2, step=1)
    background, a, b = 100 * 6 / 12, 100 * 4 / 6, 100 * 4 / 8  # c is not in the ground truth

    def near(values):
        return pytest.approx(values, abs=0.01)

    assert entry["miou"] == near({"old": a, "new": b, "all": (background + a + b) / 3})
    with_background = {"old": (background + a) / 2, "new": (background + b) / 2, "all": (background + a + b) / 3}
    assert entry["miou_with_background"] == near(with_background)
    assert entry["miou_without_background"] == near({"old": a, "new": b, "all": (a + b) / 2})
    assert entry["pixel_accuracy"] == 70.0
    first = scores(matrix, ["background", "a", "b", "c"], old=1, step=0)
    assert first["miou_with_background"]["old"] is None and first["miou_without_background"]["old"] is None
    assert first["miou_with_background"]["new"] == first["miou"]["all"]


class Seen:
    """A localizer that is asked for its probabilities alone."""

    def __init__(self, probabilities):
        self.given = torch.tensor(probabilities).permute(2, 0, 1)[None]

    def probabilities(self, image):
        return self.given


def test_the_localizer_may_find_all_classes_that_the_mask_shows_and_no_other():
    # one row of pixels; channels: background, old, other old, new
    seen: Any = Seen([[[0.1, 0.6, 0.2, 0.1], [0.1, 0.2, 0.5, 0.2], [0.2, 0.2, 0.5, 0.1], [0.4, 0.1, 0.4, 0.1]]])
    both = torch.tensor([[[1, 3, VOID, VOID]]])
    assert localize(seen, torch.zeros(1), both).tolist() == [[[1, 1, 0, 0]]]  # first of equals
    old = torch.tensor([[[2, 2, 2, 0]]])
    assert localize(seen, torch.zeros(1), old).tolist() == [[[2, 2, 2, 0]]]
    nothing = torch.tensor([[[0, 0, 0, 0]]])
    assert localize(seen, torch.zeros(1), nothing).tolist() == [[[0, 0, 0, 0]]]


@torch.no_grad()
def tiny_model(*classes):
    """A model that was never trained, its classifiers set so that every class is seen somewhere."""
    model = build_segmenter("small_resnet", 4, "none", 8, classes, 32, (2,)).eval()
    logits = model(torch.randn(8, 3, 32, 32)).logits
    means, spreads = logits.mean((0, 2, 3)), logits.std((0, 2, 3))
    for number, classifier in enumerate(model.classifiers):
        own = slice(sum(classes[:number]), sum(classes[: number + 1]))
        classifier.get_parameter("bias").sub_(means[own]).div_(spreads[own])
        classifier.get_parameter("weight").div_(spreads[own, None, None, None])
    return model


def test_the_localizer_is_scored_beside_the_model():
    names = ["background", "a", "b", "c"]
    method = Finetune(tiny_model(3, 1), tiny_model(3), Settings(localizer_channels=8))
    method.train()
    batches: list[Batch] = [{"image": torch.randn(2, 3, 32, 32), "mask": torch.randint(0, 4, (2, 32, 32))}]
    entry, matrix = evaluate_step(method, batches, names, 3, 1)
    assert method.training and method.localizer.training
    assert matrix.sum() == 2 * 32 * 32
    assert set(entry["localizer"]) == {*entry} - {"step", "classes", "localizer"}
    method.eval()
    with torch.no_grad():
        expected = method.localizer(method.model(batches[0]["image"]).features).softmax(1)  # all classes are shown
    hit = (ops.upsampled_argmax(expected, (32, 32)) == batches[0]["mask"]).double().mean().item()
    assert entry["localizer"]["pixel_accuracy"] == pytest.approx(100 * hit, abs=0.01)
    tags = scalars(entry)
    assert tags["validation/localizer_miou"] == entry["localizer"]["miou"]["all"]
    assert tags["validation/miou_old"] == entry["miou"]["old"]
    assert "localizer" in summary(entry)


def test_a_method_without_a_localizer_has_none_scored():
    batches: list[Batch] = [{"image": torch.randn(1, 3, 32, 32), "mask": torch.zeros(1, 32, 32, dtype=torch.long)}]
    entry, _ = evaluate_step(Supervised(tiny_model(3)), batches, ["background", "a", "b"], 1, 0)
    assert "localizer" not in entry
    assert set(scalars(entry)) == {"validation/miou_all"}  # no old class, and no pixel of a new one


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set of images of several sizes, and a checkpoint that was never trained on it."""
    root = tmp_path_factory.mktemp("data")
    sizes = {"wide": (20, 44), "high": (50, 30), "square": (33, 33), "small": (16, 24)}
    masks = {name: mask_of(0, 1, 3, size=size) for name, size in sizes.items()}
    masks["wide"][:, :3] = VOID
    write_voc(root, masks, lists={"val": list(masks)})
    config = replace(
        DEMO,
        task="2-2",
        data=replace(DEMO.data, root=str(root), crop=32),
        model=replace(DEMO.model, head_channels=8),
    )
    task = Task.parse(config.task, CLASSES)
    torch.manual_seed(3)
    path = root / "checkpoint.pt"
    checkpoint.save_model(tiny_model(3, 2), config, task, 1, [], path)
    return path, masks


def test_images_may_be_larger_in_testing_than_in_training(trained, tmp_path):
    saved = Checkpoint(trained[0])
    config = replace(saved.config, data=replace(saved.config.data, test_crop=48))
    dataset = opening.validation_set(config, opening.validation(config, saved.task.classes), saved.task, 1)
    assert dataset[0]["image"].shape[1:] == dataset[0]["mask"].shape == (48, 48)
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_model(saved.model(), config, saved.task, 1, [], path)
    larger = Checkpoint(path)
    assert larger.model().head.window == 32 // config.model.stride  # as in training
    assert Description.of(larger).crop == 48
    predictor = Predictor(larger, CPU)
    with patch.object(predictor, "_logits", wraps=predictor._logits) as logits:
        assert predictor.predict(np.zeros((20, 40, 3), np.uint8)).shape == (20, 40)
    assert logits.call_args.args[0].shape == (1, 3, 48, 96)


def test_whole_images_are_judged_by_what_predict_writes(trained, capsys):
    path, masks = trained
    entry = evaluate_checkpoint(path, None, None, "cpu", None, whole=True)
    predictor = Predictor(Checkpoint(path), CPU)
    expected = np.zeros((5, 5), np.int64)
    for name, mask in masks.items():
        image = Image.open(path.parent / "JPEGImages" / f"{name}.jpg")
        found = predictor.predict(image)
        np.add.at(expected, (mask[mask != VOID], found[mask != VOID]), 1)
    assert expected.sum() == sum((mask != VOID).sum() for mask in masks.values())
    scored = scores(torch.from_numpy(expected), list(CLASSES[:5]), 3, 1)
    assert entry == scored
    printed = capsys.readouterr().out
    assert "with background: old" in printed and "ant" in printed


def test_the_command_takes_views_and_writes_figures_and_picture(trained, tmp_path, capsys):
    path, _ = trained
    figures, picture = tmp_path / "figures.json", tmp_path / "confusion.png"
    options = ["--whole", "--scales", "0.5", "1.5", "--flip", "--device", "cpu"]
    assert main(["evaluate", str(path), *options, "--out", str(figures), "--confusion", str(picture)]) == 0
    found = json.loads(figures.read_text())
    for other in ({}, {"whole": True}, {"scales": (0.5, 1.5), "flip": True}):
        assert found["iou"] != evaluate_checkpoint(path, None, None, "cpu", None, **other)["iou"]
    same: dict[str, Any] = {"whole": True, "scales": (0.5, 1.5), "flip": True}
    assert found == evaluate_checkpoint(path, None, None, "cpu", None, **same)
    assert Image.open(picture).width > 300


def test_windows_are_scored_beside_the_whole_image(trained, tmp_path, capsys):
    path, _ = trained
    figures = tmp_path / "figures.json"
    assert main(["evaluate", str(path), "--whole", "--window", "20", "--device", "cpu", "--out", str(figures)]) == 0
    found = json.loads(figures.read_text())
    windowed = found.pop("window")
    assert found == evaluate_checkpoint(path, None, None, "cpu", None, whole=True)
    assert (windowed.pop("size"), windowed.pop("stride")) == (20, 10)
    assert set(windowed) == set(found) - {"step", "classes"} and windowed["iou"] != found["iou"]
    printed = capsys.readouterr().out
    assert "with a window of 20 pixels that moves by 10:\n" in printed
    other = evaluate_checkpoint(path, None, None, "cpu", None, whole=True, window=20, window_stride=20)["window"]
    assert other["stride"] == 20 and other["iou"] != windowed["iou"]


@pytest.mark.parametrize(
    ("size", "stride", "text"),
    [(0, None, "at least 1 pixel"), (8, 9, "1 to 8"), (8, 0, "1 to 8"), (None, 4, "no window")],
)
def test_windows_must_cover_the_image(size, stride, text):
    with pytest.raises(UserError, match=text):
        evaluate_checkpoint(Path("nowhere.pt"), None, None, "cpu", None, window=size, window_stride=stride)


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (float("nan"),)])
def test_scales_must_be_positive(scales):
    with pytest.raises(UserError, match="positive numbers"):
        evaluate_checkpoint(Path("nowhere.pt"), None, None, "cpu", None, scales=scales)


def test_files_need_a_folder(trained, tmp_path):
    with pytest.raises(UserError, match="no folder"):
        evaluate_checkpoint(trained[0], None, None, "cpu", tmp_path / "nowhere" / "figures.json")

"""What is known before a step: photographs, settings, a first look; and what is said of it afterwards."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import wilson
from tests.support.foreign_models import Net
from wilson.adding import choices, held_out
from wilson.adding.first_look import first_look
from wilson.adding.photographs import open_photographs
from wilson.data.dataset import EpochSampler, MixedIn
from wilson.data.sources.base import class_sets
from wilson.data.sources.labelled import open_negatives
from wilson.data.transforms import Normalization
from wilson.errors import UserError
from wilson.models import SegmentationModel

OLD = ("background", "a", "b", "c")


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

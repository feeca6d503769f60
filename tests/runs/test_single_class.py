"""A step with a single new class is learned from its image-level labels with negatives, and not without them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_runs import checkpoint_of
from wilson.config import RECIPES, Config
from wilson.data.export import export
from wilson.data.sources.synthetic import Synthetic
from wilson.data.sources.views import without
from wilson.runs import run as running

NEW = "zigzag"
DEMO = RECIPES["demo"]
SMALL = replace(
    DEMO,
    task="1,2,3,4,5/6",
    data=replace(DEMO.data, train_images=840, val_images=60),
    base=replace(DEMO.base, epochs=3),
    step=replace(DEMO.step, epochs=6),
    evaluate_every=100,
)


@pytest.mark.slow
def test_a_single_class_needs_negatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export({"train": without(Synthetic("step", 150), NEW)}, tmp_path / "set")
    base = checkpoint_of(running.run(SMALL, tmp_path / "base", steps=[0]), 0)
    monkeypatch.setattr(running, "check_single_class", lambda *_: None)  # which would refuse the first of the two

    def learned(name: str, config: Config) -> dict[str, Any]:
        out = running.run(config, tmp_path / name, steps=[1], start=base)
        return json.loads((out / "results.json").read_text())["steps"][-1]

    alone = learned("alone", SMALL)
    negatives = str(tmp_path / "set" / "JPEGImages")
    helped = learned("helped", replace(SMALL, data=replace(SMALL.data, negatives=negatives)))
    assert alone["iou"]["background"] < 10, "everything is the new class"
    assert helped["iou"]["background"] > 70
    assert helped["iou"][NEW] > 2 * alone["iou"][NEW]

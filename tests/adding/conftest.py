"""Photographs to add classes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from wilson.data.sources.synthetic import Synthetic


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """`dots/`, `zigzag/` and `without/`, a dozen small images in each."""
    out, source = tmp_path_factory.mktemp("photographs"), Synthetic("step", 60)
    kinds: dict[str, int] = {}
    for index, name in enumerate(source.names):
        shown = {source.classes[i] for i in source.class_ids(index)}
        place = next((c for c in ("dots", "zigzag") if shown & {"dots", "zigzag"} == {c}), "without")
        kinds[place] = kinds.get(place, 0) + 1
        if kinds[place] <= 12 and (place != "without" or ("dots" not in shown and "zigzag" not in shown)):
            (out / place).mkdir(exist_ok=True)
            source.image(index).save(out / place / f"{name}.png")
    return out

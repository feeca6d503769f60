"""Check a folder in COCO's layout: every image and annotation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wilson.data.check.counts import count
from wilson.data.check.diagnosis import map_shift, turns_doubtfully
from wilson.data.check.findings import Problem, Report
from wilson.data.images import how_stored, read_mask
from wilson.data.scan import fault, ids_among
from wilson.data.sources.base import ImageSource
from wilson.data.sources.coco import StuffMaps, coco_splits, open_coco, unknown_values
from wilson.data.tasks import Task
from wilson.errors import UserError


def check_coco(root: Path, task: str | None, protocol: str) -> Report:
    """As :func:`wilson.data.check.check`, for a folder in COCO's layout."""
    sources = {name: open_coco(root, name) for name in coco_splits(root)}
    first, classes = next((name, source.classes) for name, source in sources.items())
    for name, source in sources.items():
        if source.classes != classes:
            raise UserError(
                f"{root}: the classes of {name} are {', '.join(source.classes[1:])}, those of {first} "
                f"{', '.join(classes[1:])}; expected the same ones"
            )
    parsed = None if task is None else Task.parse(task, classes)
    named = (
        "COCO's" if all(isinstance(source, StuffMaps) for source in sources.values()) else "the categories of the JSON"
    )
    splits, errors, warnings = [], [], []
    values = np.zeros(256, np.int64)  # pixels of each value of the pixel maps
    for name, source in sources.items():
        pixels, held = np.zeros(256, np.int64), []
        for index in tqdm(range(len(source.names)), desc=f"Checking {name}", unit="image"):
            wrong = fault(source, index)
            found, raw = (np.zeros(256, np.int64),) * 2 if wrong else _pixels(source, index)
            if isinstance(source, StuffMaps) and (unknown := unknown_values(ids_among(raw))):
                wrong = f"holds the values {unknown}, which COCO-Stuff's maps never do"
            files = source.files(index)
            if wrong:
                errors.append(_problem(root, files, wrong))
            elif text := turns_doubtfully(stored := how_stored(files[0]), stored.size):
                warnings.append(_problem(root, files[:1], text))
            held.append(ids_among(found) if isinstance(source, StuffMaps) else source.class_ids(index))
            pixels += found
            values += raw
        split, texts = count(name, held, pixels, len(held), classes, parsed, protocol)
        splits.append(split)
        warnings += [Problem(name, text) for text in texts]
    if (cause := map_shift(values)) is not None:
        errors.insert(0, Problem("pixel maps", f"likely cause: {cause}"))
    return Report(root, classes, parsed, protocol, tuple(splits), tuple(errors), tuple(warnings), named)


def _problem(root: Path, files: Sequence[Path], text: str) -> Problem:
    file = next((file for file in files if text.startswith(f"{file}: ")), files[-1])
    return Problem(os.path.relpath(file, root), text.removeprefix(f"{file}: ").replace(f"{root}{os.sep}", ""))


def _pixels(source: ImageSource, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of pixels of each mask id and of each value of the pixel map (0 without a map), both (256,)."""
    mask = source.mask(index)
    assert mask is not None
    found, values = np.array(mask.histogram(), np.int64), np.zeros(256, np.int64)
    if isinstance(source, StuffMaps):
        values += read_mask(source.files(index)[-1]).histogram()
    return found, values

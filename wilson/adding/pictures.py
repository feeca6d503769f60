"""Photographs before and after: what the old and the grown model see in those that were held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import default_collate

from wilson import ops
from wilson.config.masks import BACKGROUND
from wilson.data.loading import to_batch
from wilson.data.transforms import CentreCrop, Normalization
from wilson.methods import Method
from wilson.pictures import palette
from wilson.pictures.overlay import overlay
from wilson.run_folder import RunFolder

from .photographs import Photographs

COUNT = 12
INDEX = "before-after.json"


@torch.no_grad()
def write(
    folder: RunFolder,
    method: Method,
    photographs: Photographs,
    normalization: Normalization,
    crop: int,
    names: Sequence[str],
    device: torch.device,
) -> None:
    """Write overlays of up to a dozen photographs, held out where there are such; new classes in turn."""
    source = photographs.held_out if photographs.held_out.names else photographs.training
    to = folder.path / "pictures"
    to.mkdir(exist_ok=True)
    training = method.training
    method.eval()
    colours, index = palette.distinct(len(names)), []
    for number, place in enumerate(_in_turn([source.class_ids(i) for i in range(len(source.names))])):
        pixels, _ = CentreCrop(crop)(source.image(place), None)
        batch = to_batch(default_collate([{"image": pixels}]), device, normalization)
        image = pixels.permute(1, 2, 0).numpy()
        row: dict[str, object] = {"name": source.names[place]}
        for kind, logits in (("before", method.remember(batch).logits), ("after", method.model(batch["image"]).logits)):
            labels = ops.upsampled_argmax(logits, (crop, crop))[0].cpu().numpy()
            row[kind] = file = f"{number:02d}-{kind}.jpg"
            overlay(image, labels, colours=colours).save(to / file, quality=90)
            row[f"{kind}_classes"] = sorted({int(label) for label in labels.flat} - {BACKGROUND})
        index.append(row)
    method.train(training)
    (to / INDEX).write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")


def _in_turn(held: Sequence[frozenset[int]]) -> list[int]:
    """Places of up to `COUNT` images, of one class after the other."""
    groups: dict[frozenset[int], list[int]] = {}
    for place, ids in enumerate(held):
        groups.setdefault(ids, []).append(place)
    chosen: list[int] = []
    while len(chosen) < min(COUNT, len(held)):
        chosen.extend(places.pop(0) for places in groups.values() if places)
    return chosen[:COUNT]


def read(folder: Path) -> list[dict[str, object]]:
    """The index that :func:`write` left; empty if there is none."""
    try:
        return list(json.loads((folder / "pictures" / INDEX).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []

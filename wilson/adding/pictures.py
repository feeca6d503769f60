"""Photographs before and after: what the old and the grown model see in those that were held out."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch.utils.data import default_collate

from wilson import ops
from wilson.config.masks import BACKGROUND
from wilson.data.loading import to_batch
from wilson.data.transforms import Normalization, WholeImage
from wilson.methods import Method
from wilson.pictures import palette
from wilson.pictures.overlay import overlay
from wilson.run_folder import RunFolder

from .photographs import Photographs

COUNT = 12


@torch.no_grad()
def write(
    folder: RunFolder,
    method: Method,
    photographs: Photographs,
    normalization: Normalization,
    side: int,
    names: Sequence[str],
    device: torch.device,
) -> None:
    """Write overlays of up to a dozen photographs, held out where there are such; new classes in turn.

    The models see each as `predict` does: whole, its short side resized to `side` pixels.
    """
    source = photographs.held_out if photographs.held_out.names else photographs.training
    folder.pictures.mkdir(exist_ok=True)
    training = method.training
    method.eval()
    colours, index = palette.distinct(len(names)), []
    for number, place in enumerate(_in_turn([source.class_ids(i) for i in range(len(source.names))])):
        pixels, _ = WholeImage(side)(source.image(place), None)
        batch = to_batch(default_collate([{"image": pixels}]), device, normalization)
        image = pixels.permute(1, 2, 0).numpy()
        row: dict[str, object] = {"name": source.names[place]}
        for kind, logits in (("before", method.remember(batch).logits), ("after", method.model(batch["image"]).logits)):
            labels = ops.upsampled_argmax(logits, image.shape[:2])[0].cpu().numpy()
            row[kind] = file = f"{number:02d}-{kind}.jpg"
            overlay(image, labels, colours=colours).save(folder.pictures / file, quality=90)
            row[f"{kind}_classes"] = sorted({int(label) for label in labels.flat} - {BACKGROUND})
        index.append(row)
    method.train(training)
    folder.pictures_index.write_text(json.dumps(index, indent=1, ensure_ascii=False), encoding="utf-8")


def _in_turn(held: Sequence[frozenset[int]]) -> list[int]:
    """Places of up to `COUNT` images, of one class after the other."""
    groups: dict[frozenset[int], list[int]] = {}
    for place, ids in enumerate(held):
        groups.setdefault(ids, []).append(place)
    chosen: list[int] = []
    while len(chosen) < min(COUNT, len(held)):
        chosen.extend(places.pop(0) for places in groups.values() if places)
    return chosen[:COUNT]

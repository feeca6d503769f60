"""Photographs before and after, as the old and the grown model see them, and the pseudo-labels in between."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch.utils.data import default_collate

from wilson import ops
from wilson.config.masks import BACKGROUND
from wilson.data.dataset import StepDataset
from wilson.data.loading import to_batch
from wilson.data.sources.base import ImageSource
from wilson.data.transforms import Normalization, WholeImage
from wilson.methods import Method
from wilson.methods.base import WeaklySupervised
from wilson.pictures import palette
from wilson.pictures.overlay import overlay
from wilson.run_folder import RunFolder, StepFolder

from .photographs import Photographs

COUNT, WATCHED = 12, 4  # photographs before and after, and those whose pseudo-labels are drawn as they become better


def watched(training: ImageSource) -> list[int]:
    """Places of the photographs whose pseudo-labels are drawn."""
    return _in_turn(training, WATCHED)


@torch.no_grad()
def write_pseudo_labels(
    folder: StepFolder, method: WeaklySupervised, dataset: StepDataset, normalization: Normalization, iteration: int
) -> None:
    """Write `NUMBER-ITERATION.jpg` for each image of a data set: the pseudo-labels that the model learns from now.

    Args:
        folder: of the step.
        method: in any mode, which is restored afterwards.
        dataset: few images with their image-level labels, whole.
        normalization: of the images.
        iteration: number of iterations so far.
    """
    device = next(method.parameters()).device
    folder.pseudo_labels.mkdir(exist_ok=True)
    training = method.training
    method.eval()
    for number in range(len(dataset)):
        loaded = default_collate([dataset[number]])
        _, classes = method.explain(to_batch(loaded, device, normalization))
        image = loaded["image"][0].permute(1, 2, 0).numpy()
        coarse = torch.nn.functional.interpolate(classes[:, None].float(), size=image.shape[:2])  # nearest
        picture = overlay(image, coarse[0, 0].cpu().numpy().astype("uint8"))
        picture.save(folder.pseudo_labels / f"{number}-{iteration:06d}.jpg", quality=90)
    method.train(training)


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
    for number, place in enumerate(_in_turn(source, COUNT)):
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


def _in_turn(source: ImageSource, count: int) -> list[int]:
    """Places of some images of a source, of one class after the other."""
    groups: dict[frozenset[int], list[int]] = {}
    for place in range(len(source.names)):
        groups.setdefault(source.class_ids(place), []).append(place)
    chosen: list[int] = []
    while len(chosen) < min(count, len(source.names)):
        chosen.extend(places.pop(0) for places in groups.values() if places)
    return chosen[:count]

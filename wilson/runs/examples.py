"""Pictures of what a step learned: the same dozen validation images in every step and run of a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import default_collate

from wilson import ops
from wilson.data.dataset import StepDataset
from wilson.data.loading import to_batch
from wilson.methods import Method
from wilson.methods.base import WeaklySupervised
from wilson.pictures.overlay import overlay
from wilson.report import panels

if TYPE_CHECKING:
    from .experiment import Experiment

COUNT, LOGGED = 12, 4  # images in the report, and in the TensorBoard log


def write(folder: Path, method: Method, experiment: Experiment, validation: StepDataset, step: int) -> None:
    """Write the example pictures that the report shows."""
    entries = look(method, experiment, validation, choose(experiment, COUNT))
    panels.write(folder, experiment.task.class_names(step), experiment.task.seen(step), entries)


def log(board: Any, iteration: int, method: Method, experiment: Experiment, validation: StepDataset) -> None:
    """Add predictions beside the truth to the TensorBoard log."""
    for number, entry in enumerate(look(method, experiment, validation, choose(experiment, LOGGED))):
        pictures = [overlay(entry.image, labels) for labels in (entry.prediction, entry.truth)]
        row = np.concatenate([entry.image, *(np.asarray(p) for p in pictures)], axis=1)
        board.add_image(f"validation/{number}: image, prediction, truth", row, iteration)


def choose(experiment: Experiment, count: int) -> list[int]:
    """Choose images that show all classes of the task, old and new together where there are such images."""
    steps = [frozenset(ids) for ids in experiment.task.steps]
    held = [experiment.validation.class_ids(i) for i in range(len(experiment.validation.names))]
    return sorted(spread(held, steps, count))


def spread(held: Sequence[frozenset[int]], steps: Sequence[frozenset[int]], count: int) -> list[int]:
    """Choose images one by one, each with a class that was shown least so far.

    Args:
        held: mask ids of the classes in each image.
        steps: mask ids of the classes of each step.
        count: of the images, fewer if there are not as many.

    Returns:
        Positions of the images. Of those that show a rare class, the ones with classes of more steps come first, then
        those with more classes that were shown as little.
    """
    left = list(range(len(held)))
    chosen: list[int] = []
    shown = dict.fromkeys((class_id for ids in steps for class_id in ids), 0)
    while left and len(chosen) < count:
        least = min((shown[c] for i in left for c in held[i] if c in shown), default=0)
        rare = {class_id for class_id, times in shown.items() if times == least}
        first = min(
            left,
            key=lambda i: (not held[i] & rare, -sum(bool(held[i] & ids) for ids in steps), -len(held[i] & rare), i),
        )
        left.remove(first)
        chosen.append(first)
        for class_id in held[first] & shown.keys():
            shown[class_id] += 1
    return chosen


@torch.no_grad()
def look(method: Method, experiment: Experiment, validation: StepDataset, positions: list[int]) -> list[panels.Entry]:
    """The outputs of model and localizer, and the pseudo-labels, for some images with their image-level labels."""
    device = next(method.parameters()).device
    loaded = default_collate([validation[i] for i in positions])
    batch = to_batch(loaded, device, experiment.normalization)
    training = method.training
    method.eval()
    truth = loaded["mask"].numpy()
    prediction = ops.upsampled_argmax(method.model(batch["image"]).logits, truth.shape[1:]).cpu().numpy()
    localizer = pseudo = [None] * len(positions)
    if isinstance(method, WeaklySupervised):
        probabilities, classes = method.explain(batch)
        localizer, pseudo = list(probabilities.float().cpu().numpy()), list(classes.cpu().numpy())
    method.train(training)
    images = loaded["image"].permute(0, 2, 3, 1).numpy()
    columns = (loaded["name"], images, prediction, truth, localizer, pseudo)
    return [panels.Entry(*row) for row in zip(*columns, strict=True)]

"""Mean IoU from one confusion matrix over the whole validation set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wilson import ops, train
from wilson.checkpoint import Checkpoint
from wilson.data.sources import VOID
from wilson.errors import UserError
from wilson.experiment import choose_device, open_validation, validation_set
from wilson.models import Segmenter


@torch.no_grad()
def confusion_matrix(model: Segmenter, batches: Iterable[dict[str, Any]], classes: int, device: torch.device) -> Tensor:
    """Pixels by true class (rows) and predicted class (columns), int64 (C, C); label 255 is left out.

    Args:
        model: set to eval mode, and back afterwards.
        batches: with `image` (B, 3, H, W) and `mask` (B, H, W).
        classes: C, background included.
        device: where the model is.
    """
    from torchmetrics.classification import MulticlassConfusionMatrix

    metric = MulticlassConfusionMatrix(classes, ignore_index=VOID, validate_args=False).to(device)
    training = model.training
    model.eval()
    for batch in batches:
        mask = batch["mask"].to(device)
        logits = model(batch["image"].to(device)).logits
        metric.update(ops.upsampled_argmax(logits, tuple(mask.shape[1:])).long(), mask)
    model.train(training)
    return metric.compute().cpu()


def scores(matrix: Tensor, names: Sequence[str], old: int, step: int) -> dict[str, Any]:
    """The entry of one step in results.json, in percent.

    Args:
        matrix: confusion matrix (C, C).
        names: class names by channel, background first.
        old: number of channels of earlier steps, background included; 1 at step 0.
        step: number of the step.

    Returns:
        IoU of each class (None where the ground truth has no pixel of it; such classes are left out of the means), mean
        IoU of old classes without background (None at step 0), new classes, and all with background; pixel accuracy.
    """
    matrix = matrix.double()
    hit, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    iou = [100 * (h / (t + p - h)).item() if t > 0 else None for h, t, p in zip(hit, truth, predicted, strict=True)]

    def mean(values: Sequence[float | None]) -> float | None:
        present = [v for v in values if v is not None]
        return round(sum(present) / len(present), 2) if present else None

    total = truth.sum().item()
    return {
        "step": step,
        "classes": list(names),
        "iou": {name: None if value is None else round(value, 2) for name, value in zip(names, iou, strict=True)},
        "miou": {"old": mean(iou[1:old]) if step else None, "new": mean(iou[old:]), "all": mean(iou)},
        "pixel_accuracy": round(100 * hit.sum().item() / total, 2) if total else None,
    }


def evaluate_checkpoint(
    path: Path, root: str | None, split: str | None, device: str, out: Path | None
) -> dict[str, Any]:
    """Evaluate a checkpoint on a list of images, print IoU of each class, and write the figures if asked to."""
    saved = Checkpoint(path)
    data = saved.config.data
    data = replace(data, root=root or data.root, val_split=split or data.val_split)
    config = replace(saved.config, data=data, device=device)
    images, task, step = open_validation(config), saved.task, saved.step
    if images.classes != task.classes:
        raise UserError(
            f"{data.root} has the classes {', '.join(images.classes)}, the checkpoint was trained on "
            f"{', '.join(task.classes)}; evaluate on a data set with the same classes"
        )
    where = choose_device(device)
    dataset = validation_set(config, images, task, step)
    loader = train.make_loader(dataset, config.for_step(step).batch, data.workers, where)
    names, old = task.class_names(step), len(task.seen(step - 1)) if step else 1
    entry = scores(confusion_matrix(saved.model().to(where), loader, len(names), where), names, old, step)
    width = max(map(len, names))
    for name, iou in entry["iou"].items():
        print(f"{name:{width}}  {percent(iou)}")
    print(summary(entry))
    if out is not None:
        out.write_text(json.dumps(entry, indent=2))
    return entry


def summary(entry: dict[str, Any]) -> str:
    miou = ", ".join(f"{group} {percent(value)}" for group, value in entry["miou"].items())
    return f"mIoU {miou}; pixel accuracy {percent(entry['pixel_accuracy'])}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

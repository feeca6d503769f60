"""IoU and its means from one confusion matrix over a whole data set, as numbers and as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wilson.config.masks import VOID
from wilson.data.loading import Batch
from wilson.report.text import percent

MEANS = {
    "miou": "mIoU as published",
    "miou_with_background": "with background",
    "miou_without_background": "without background",
}


@torch.no_grad()
def confusion_matrices(
    model: nn.Module,
    batches: Iterable[Batch],
    classes: int,
    predict: Sequence[Callable[[Tensor, Tensor], Tensor]],
) -> list[Tensor]:
    """Count pixels by true class (rows) and predicted class (columns), once for each way to predict.

    Args:
        model: the network that `predict` uses; in eval mode during the count, then back in its own mode.
        batches: with `image` (B, 3, H, W) and `mask` (B, H', W'), on the model's device; mask pixels of 255 are not
            counted.
        classes: C, background included.
        predict: functions from image and mask to output channels (B, H', W').

    Returns:
        One matrix for each function, int64 (C, C), on the CPU.
    """
    from torchmetrics.classification import MulticlassConfusionMatrix

    device = next(model.parameters()).device
    metrics = [MulticlassConfusionMatrix(classes, ignore_index=VOID, validate_args=False).to(device) for _ in predict]
    training = model.training
    model.eval()
    for batch in batches:
        for metric, look in zip(metrics, predict, strict=True):
            metric.update(look(batch["image"], batch["mask"]).long(), batch["mask"])
    model.train(training)
    return [metric.compute().cpu() for metric in metrics]


def scores(matrix: Tensor, names: Sequence[str], old: int, step: int) -> dict[str, Any]:
    """The entry of one step in results.json, in percent.

    Args:
        matrix: confusion matrix (C, C).
        names: class names by channel, background first.
        old: number of channels of earlier steps, background included; 1 at step 0.
        step: number of the step.

    Returns:
        IoU of each class, None where the ground truth has no pixel of it; the means leave such classes out. Mean IoU of
        the old classes (None at step 0), the new classes, and all, in three ways: as published (`miou`: old and new
        without background, all with it), with background, and without. Pixel accuracy.
    """
    matrix = matrix.double()
    hit, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    iou = [100 * (h / (t + p - h)).item() if t > 0 else None for h, t, p in zip(hit, truth, predicted, strict=True)]

    def mean(values: Sequence[float | None]) -> float | None:
        present = [v for v in values if v is not None]
        return round(sum(present) / len(present), 2) if present else None

    background, before, added = iou[:1], iou[1:old], iou[old:]
    with_background = {"old": mean(background + before) if step else None, "new": mean(background + added)}
    without = {"old": mean(before) if step else None, "new": mean(added)}
    total = truth.sum().item()
    return {
        "step": step,
        "classes": list(names),
        "iou": {name: None if value is None else round(value, 2) for name, value in zip(names, iou, strict=True)},
        "miou": {**without, "all": mean(iou)},
        "miou_with_background": {**with_background, "all": mean(iou)},
        "miou_without_background": {**without, "all": mean(before + added)},
        "pixel_accuracy": round(100 * hit.sum().item() / total, 2) if total else None,
    }


def scalars(entry: dict[str, Any]) -> dict[str, float]:
    """The figures of an entry of results.json that go into the TensorBoard log, by tag."""
    values = {f"validation/miou_{group}": value for group, value in entry["miou"].items()}
    if "localizer" in entry:
        values["validation/localizer_miou"] = entry["localizer"]["miou"]["all"]
    return {tag: value for tag, value in values.items() if value is not None}


def text(entry: dict[str, Any]) -> str:
    """An entry of results.json as text for a person: IoU of each class, the means, and pixel accuracy."""
    width = max(map(len, entry["iou"]))
    lines = [f"{name:{width}}  {percent(iou)}" for name, iou in entry["iou"].items()]
    means = [f"{what}: {_means(entry[key])}" for key, what in MEANS.items()]
    return "\n".join([*lines, *means, f"pixel accuracy {percent(entry['pixel_accuracy'])}"])


def summary(entry: dict[str, Any]) -> str:
    """An entry of results.json in one line."""
    line = f"mIoU {_means(entry['miou'])}; pixel accuracy {percent(entry['pixel_accuracy'])}"
    return line + (f"; localizer {_means(entry['localizer']['miou'])}" if "localizer" in entry else "")


def _means(miou: dict[str, float | None]) -> str:
    return ", ".join(f"{group} {percent(value)}" for group, value in miou.items())

"""IoU of the model and of the localizer, from one confusion matrix over the whole validation set."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional as F

from wilson import images, ops, train
from wilson.checkpoint import Checkpoint, image_statistics
from wilson.data.sources import BACKGROUND, VOID
from wilson.data.transforms import resized
from wilson.errors import UserError
from wilson.experiment import choose_device, validation_set
from wilson.files import replacing
from wilson.methods import Method
from wilson.methods.base import WeaklySupervised
from wilson.models import Segmenter

MEANS = {
    "miou": "mIoU as published",
    "miou_with_background": "with background",
    "miou_without_background": "without background",
}


def segment(
    model: Segmenter, image: Tensor, mask: Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Tensor:
    """The class of every pixel of the mask: the arg-max of the upsampled logits.

    Of several views (every scale, each with its mirror image if `flip`) the softmax of the upsampled logits is
    averaged, as in the test of in-place ABN (Rota Bulò et al., CVPR 2018), whose networks the published ones are.

    Args:
        model: in eval mode.
        image: normalised, (B, 3, H, W).
        mask: (B, H', W'), of which only the size counts.
        scales: sizes of the views relative to `image`.
        flip: mirror each view left to right, too.

    Returns:
        Output channels, integers (B, H', W').
    """
    size = (mask.shape[1], mask.shape[2])
    views = [_view(model, image, scale, mirror) for scale in scales for mirror in ((False, True) if flip else (False,))]
    if len(views) == 1:
        return ops.upsampled_argmax(views[0], size)
    # Image by image: the probabilities of all classes at the image's size take much memory.
    return torch.cat([_fuse(logits, size) for logits in zip(*(view.split(1) for view in views), strict=True)])


def _view(model: Segmenter, image: Tensor, scale: float, mirror: bool) -> Tensor:
    """The logits of an image seen larger, smaller or in a mirror, and turned back."""
    if scale != 1:
        size = [max(1, round(side * scale)) for side in image.shape[2:]]
        image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
    return model(image.flip(3)).logits.flip(3) if mirror else model(image).logits


def _fuse(logits: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
    views = [F.interpolate(view, size=size, mode="bilinear", align_corners=False).softmax(1) for view in logits]
    return torch.stack(views).mean(0).argmax(1)


def localize(method: WeaklySupervised, image: Tensor, mask: Tensor) -> Tensor:
    """What the localizer sees of the classes that an image is known to show: the arg-max of its upsampled softmax.

    Known are the background and every class in the mask, old ones as well as new ones: the image-level labels of an
    incremental step, in which old classes are 0, would never let the localizer find one.

    Args:
        method: in eval mode.
        image: normalised, (B, 3, H, W).
        mask: output channels, (B, H', W'); 255 without a label.

    Returns:
        Output channels, integers (B, H', W').
    """
    probabilities = method.probabilities(image)
    shown = probabilities.new_zeros(len(mask), VOID + 1).scatter_(1, mask.flatten(1), 1.0)
    shown[:, BACKGROUND] = 1
    shown = shown[:, : probabilities.shape[1], None, None]
    return ops.upsampled_argmax(probabilities * shown, (mask.shape[1], mask.shape[2]))


def confusion_matrix(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    classes: int,
    device: torch.device,
    predict: Callable[[Any, Tensor, Tensor], Tensor] = segment,
) -> Tensor:
    """Pixels by true class (rows) and predicted class (columns), int64 (C, C); label 255 is left out.

    Args:
        model: what `predict` looks through; set to eval mode, and back afterwards.
        batches: with `image` (B, 3, H, W) and `mask` (B, H', W').
        classes: C, background included.
        device: where the model is.
        predict: maps model, image and mask to output channels (B, H', W').
    """
    return confusion_matrices(model, batches, classes, device, [partial(predict, model)])[0]


@torch.no_grad()
def confusion_matrices(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    classes: int,
    device: torch.device,
    predict: Sequence[Callable[[Tensor, Tensor], Tensor]],
) -> list[Tensor]:
    """One :func:`confusion_matrix` for each way to predict, from image and mask, in one pass over the batches."""
    from torchmetrics.classification import MulticlassConfusionMatrix

    metrics = [MulticlassConfusionMatrix(classes, ignore_index=VOID, validate_args=False).to(device) for _ in predict]
    training = model.training
    model.eval()
    for batch in batches:
        image, mask = batch["image"].to(device), batch["mask"].to(device)
        for metric, look in zip(metrics, predict, strict=True):
            metric.update(look(image, mask).long(), mask)
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
        IoU of each class (None where the ground truth has no pixel of it; such classes are left out of the means), mean
        IoU of old classes (None at step 0), new classes, and all, in three ways: as published (`miou`: old and new
        without background, all with it), with background, and without; pixel accuracy.
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


def evaluate_step(
    method: Method, batches: Iterable[dict[str, Any]], names: Sequence[str], old: int, step: int, device: torch.device
) -> tuple[dict[str, Any], Tensor]:
    """The entry of a step in results.json, and the model's confusion matrix.

    Besides the figures of :func:`scores`, the entry has those of the localizer (`localizer`), if the method has one.

    Args:
        method: on `device`.
        batches: with `image` (B, 3, H, W) and `mask` (B, H', W').
        names, old, step: see :func:`scores`.
        device: where to compute.
    """
    looks: list[Callable[[Tensor, Tensor], Tensor]] = [partial(segment, method.model)]
    if isinstance(method, WeaklySupervised):
        looks.append(partial(localize, method))
    matrix, *localizer = confusion_matrices(method, batches, len(names), device, looks)
    entry = scores(matrix, names, old, step)
    for found in (scores(other, names, old, step) for other in localizer):
        entry["localizer"] = {key: value for key, value in found.items() if key not in ("step", "classes")}
    return entry, matrix


def scalars(entry: dict[str, Any]) -> dict[str, float]:
    """What the TensorBoard log keeps of an entry of results.json, by tag."""
    values = {f"validation/miou_{group}": value for group, value in entry["miou"].items()}
    if "localizer" in entry:
        values["validation/localizer_miou"] = entry["localizer"]["miou"]["all"]
    return {tag: value for tag, value in values.items() if value is not None}


def evaluate_checkpoint(
    path: Path,
    root: str | None,
    split: str | None,
    device: str,
    out: Path | None,
    *,
    whole: bool = False,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    picture: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint on a list of images, print IoU of each class, and write what is asked for.

    Args:
        path: the checkpoint of a step.
        root: data set; None for the one it was trained on.
        split: list of images; None for the validation list of its run.
        device: where to compute.
        out: JSON file for the figures.
        whole: whole images, each at its own size, as `predict` sees them; else centre crops, as published.
        scales, flip: views that are averaged, see :func:`segment`.
        picture: PNG file for the confusion matrix.

    Returns:
        The figures, an entry of results.json.

    Raises:
        UserError: the data set has a class that the checkpoint's has not, a scale is not positive, or there is no
            folder for a file.
    """
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise UserError(f"--scales: expected positive numbers such as 0.75 1 1.25, got {scales or 'none'}")
    for file in (out, picture):
        if file is not None and not file.parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.parent}; make it first")
    saved = Checkpoint(path)
    data = saved.config.data
    data = replace(data, root=root or data.root, val_split=split or data.val_split)
    config = replace(saved.config, data=data, device=device)
    task, step, where = saved.task, saved.step, choose_device(device)
    dataset = validation_set(config, images.validation(config, task.classes), task, step)
    if whole:
        mean, std = image_statistics(config)
        dataset.transform = partial(whole_image, short_side=data.crop, mean=mean, std=std)
    loader = train.make_loader(dataset, 1 if whole else config.for_step(step).batch, data.workers, where)
    names, old = task.class_names(step), len(task.seen(step - 1)) if step else 1
    predict = partial(segment, scales=scales, flip=flip)
    matrix = confusion_matrix(saved.model().to(where), loader, len(names), where, predict)
    entry = scores(matrix, names, old, step)
    print(text(entry))
    if out is not None:
        with replacing(out) as temporary:
            temporary.write_text(json.dumps(entry, indent=2))
    if picture is not None:
        from wilson.report import confusion

        confusion.draw(picture, names, matrix, old)
    return entry


def whole_image(
    image: Image, mask: Image | None, *, short_side: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor | None]:
    """The whole image with its short side resized, normalised, and the mask as it is."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    return resized(image, short_side, mean, std), None if mask is None else pil_to_tensor(mask)[0]


def text(entry: dict[str, Any]) -> str:
    """An entry of results.json for a person: IoU of each class, the means, pixel accuracy."""
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


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

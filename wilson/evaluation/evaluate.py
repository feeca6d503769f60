"""Evaluate a method during training, or a checkpoint on any list of images."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from wilson.atomic import replacing
from wilson.checkpoint import open_model
from wilson.data import opening
from wilson.data.loading import Batch, batches, make_loader
from wilson.data.transforms import Normalization, WholeImage
from wilson.distributed import choose_device
from wilson.errors import UserError
from wilson.grown import Grown
from wilson.methods import Method
from wilson.methods.base import WeaklySupervised
from wilson.models import image_statistics

from .metrics import confusion_matrices, scores, text
from .segment import localize, segment
from .windows import Window


def evaluate_step(
    method: Method, batches: Iterable[Batch], names: Sequence[str], old: int, step: int
) -> tuple[dict[str, Any], Tensor]:
    """Evaluate the models of a method.

    Args:
        method: in any mode, which is restored afterwards.
        batches: with `image` (B, 3, H, W) and `mask` (B, H', W'), on the method's device.
        names, old, step: see :func:`scores`.

    Returns:
        The entry of the step in results.json, and the model's confusion matrix, int64 (C, C). The entry has the figures
        of :func:`scores`, and under `localizer` those of the localizer if the method has one.
    """
    looks: list[Callable[[Tensor, Tensor], Tensor]] = [partial(segment, method.model)]
    if isinstance(method, WeaklySupervised):
        looks.append(partial(localize, method))
    matrix, *localizer = confusion_matrices(method, batches, len(names), looks)
    entry = scores(matrix, names, old, step)
    for found in (scores(other, names, old, step) for other in localizer):
        entry["localizer"] = {key: value for key, value in found.items() if key not in ("step", "classes")}
    return entry, matrix


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
    window: int | None = None,
    window_stride: int | None = None,
    picture: Path | None = None,
    builder: str | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint on a list of images, print the IoU of each class, and write the requested files.

    Args:
        path: the checkpoint of a step, or a folder, see :func:`wilson.checkpoint.open_model`.
        root: data set; None for the one that the model was trained on. Of a data set for a model of another library,
            classes that the model lacks are background.
        split: list of images; None for the validation list of the run.
        device: auto, cpu, cuda or cuda:N.
        out: JSON file for the figures; None for no file.
        whole: evaluate whole images, each at its own size, as `predict` sees them; else centre crops, as published.
        scales, flip: views to average, see :func:`segment`.
        window: side in pixels of a window that slides over each view, for a second evaluation beside the plain one;
            None for no second one.
        window_stride: pixels from one window to the next, at most `window`; None for half of it.
        picture: PNG file for the confusion matrix; None for no file.
        builder: FILE.py:FUNCTION that returns the architecture, for a model that was built by one.

    Returns:
        The figures, an entry of results.json. Under `window`, the window's size and stride, and its figures.

    Raises:
        UserError: the data set has a class that the checkpoint lacks, a scale or window is out of range, or a file's
            folder does not exist.
    """
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise UserError(f"--scales: expected positive numbers such as 0.75 1 1.25, got {scales or 'none'}")
    slid = sliding_window(window, window_stride)
    for file in (out, picture):
        if file is not None and not file.parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.parent}; make it first")
    saved = open_model(path, builder)
    data = saved.config.data
    if isinstance(saved, Grown) and root is None:
        raise UserError("--root: the model learned from photographs without masks; give a data set that has masks")
    data = replace(data, root=root or data.root, val_split=split or data.val_split)
    config = replace(saved.config, data=data, device=device)
    task, step, where = saved.task, saved.step, choose_device(device)
    if isinstance(saved, Grown):
        source = opening.by_name(opening.validation(config), task, task.class_names(step)[1:], data.root)
    else:
        source = opening.validation(config, task.classes)
    dataset = opening.validation_set(config, source, task, step)
    if whole:
        dataset.transform = WholeImage(data.tested_crop)
    loader = make_loader(dataset, 1 if whole else config.for_step(step).batch, data.workers, where)
    names, old, model = task.class_names(step), task.channels_before(step), saved.model().to(where)
    ways: list[Window | None] = [None] if slid is None else [None, slid]
    looks = [partial(segment, model, scales=scales, flip=flip, window=way) for way in ways]
    matrix, *windowed = confusion_matrices(
        model, batches(loader, where, Normalization(*image_statistics(config))), len(names), looks
    )
    entry = scores(matrix, names, old, step)
    print(text(entry))
    for found in (scores(other, names, old, step) for other in windowed):
        assert slid is not None
        entry["window"] = {**slid._asdict(), **{k: v for k, v in found.items() if k not in ("step", "classes")}}
        print(f"\nwith a window of {slid.size} pixels that moves by {slid.stride}:\n{text(found)}")
    if out is not None:
        with replacing(out) as temporary:
            temporary.write_text(json.dumps(entry, indent=2))
    if picture is not None:
        from wilson.report import confusion

        confusion.draw(picture, names, matrix, old)
    return entry


def sliding_window(size: int | None, stride: int | None) -> Window | None:
    """The window of `wilson evaluate --window`; it moves by half its size unless a stride is given.

    Raises:
        UserError: the size or the stride is out of range, or there is a stride alone.
    """
    if size is None:
        if stride is not None:
            raise UserError("--window-stride: there is no window; give its size with --window")
        return None
    if size < 1:
        raise UserError(f"--window: expected at least 1 pixel, got {size}")
    stride = max(1, size // 2) if stride is None else stride
    if not 1 <= stride <= size:
        raise UserError(f"--window-stride: expected 1 to {size} pixels, the size of the window, got {stride}")
    return Window(size, stride)

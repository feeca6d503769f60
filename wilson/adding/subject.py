"""The model that gets new classes, whatever it came from, and how the grown one is written."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from wilson import checkpoint, grown
from wilson.checkpoint import Checkpoint
from wilson.config import Config
from wilson.data.tasks import Task
from wilson.data.transforms import Normalization
from wilson.errors import UserError
from wilson.methods import METHODS
from wilson.models import SegmentationModel, image_statistics
from wilson.models.foreign import Adapted, adapt, builders, heads
from wilson.run_folder import CHECKPOINT, RunFolder, last_checkpoint

ADDED = 1  # number of the step that adds classes, in the run's folder and in the task


@dataclass(frozen=True)
class Subject:
    """A model to add classes to.

    Attributes:
        model: behind the protocol, in eval mode.
        names: of its classes by channel, background first.
        ids: mask id of each channel.
        normalization: of its images.
        stride: pixels of the image per pixel of the features.
        side: the side that images must have; None where it takes any.
        origin: what it was built of, in words.
        weights: which ones it has, in words; empty where the origin tells.
        settled: it tells itself its output and its images' statistics, so that its user cannot.
        parameters: numbers that take part in the output.
        finer: the same with a finer map of features, of a stride at most, if the model has one and its user named none.
        task: from the names of the new classes to a task, whose second step they are.
        write: the grown model, its configuration, task and results into the folder of the run; returns what to load.
    """

    model: SegmentationModel
    names: tuple[str, ...]
    ids: tuple[int, ...]
    normalization: Normalization
    stride: int
    side: int | None
    origin: str
    weights: str
    parameters: int
    finer: Callable[[int], Subject]
    task: Callable[[Sequence[str]], Task]
    write: Callable[[SegmentationModel, Config, Task, dict[str, Any], RunFolder], Path]
    settled: bool = True


def open_subject(
    model: nn.Module | str | Path,
    weights: Path | None = None,
    classes: Sequence[str] | None = None,
    builder: str | None = None,
    **adapting: Any,
) -> Subject:
    """Open the model that gets new classes.

    Args:
        model: a module, which stays as it is; or a checkpoint or run of wilson, a folder that `wilson add` wrote, or
            what :func:`builders.build` takes.
        weights: state dict of a model that a name stands for; None for those that come with it.
        classes: names of the model's outputs in their order; None for those that it knows itself.
        builder: FILE.py:FUNCTION that returns the architecture of a folder that `wilson add` wrote.
        adapting: the other arguments of :func:`adapt`.

    Raises:
        UserError: there is no such model, or it cannot get classes.
    """
    given = {"weights": weights, "names (--classes)": classes, "builder": builder, **adapting}
    choices = {"names (--classes)", *_adapting()}
    if isinstance(model, Adapted):
        _check(given, set(), "a model that was adapted already")
        return _adapted(heads.copied(model), None)
    if isinstance(model, nn.Module):
        _check(given, choices, "a module")
        named = adapting.get("features") is not None
        return _adapted(adapt(heads.copied(model), classes=classes, **adapting), None, named, settled=False)
    path = Path(model)
    if (folder := grown.inside(path)) is not None:
        before = grown.Grown(folder, builder)
        _check(given, set() if before.is_transformers else {"builder"}, f"{path}, which tells them itself")
        return _adapted(before.model(), str(folder) if before.is_transformers else before.origin)
    if _is_weights(path) and not path.exists():
        raise UserError(f"{path}: no such file; give a checkpoint of wilson, or {builders.KINDS}")
    if path.name == CHECKPOINT or last_checkpoint(path) or checkpoint.is_saved(path) or _is_weights(path):
        _check(given, set(), f"{path}, which has its weights and the names of its classes")
        try:
            saved = Checkpoint(last_checkpoint(path) or path)
        except UserError as error:
            if path.name == CHECKPOINT or not _is_weights(path):
                raise
            raise UserError(
                f"{path}: no checkpoint of wilson that can be read, and weights alone do not tell the architecture; "
                f"give that with --to ({builders.KINDS}) and the weights with --weights"
            ) from error
        return _own(saved)
    _check(given, {"weights", *choices}, str(model))
    state = None if weights is None else builders.read_state(weights)
    module = builders.build(str(model), state)
    if grown.is_transformers(module):
        adapting = {**_preprocessing(path), **{key: value for key, value in adapting.items() if value is not None}}
    if classes is None and state is None:
        classes = builders.published_classes(str(model))
    named = adapting.get("features") is not None
    which = builders.own_weights(str(model)) if weights is None else f"the weights of {weights}"
    return _adapted(adapt(module, classes=classes, **adapting), str(model), named, which, settled=False)


def _adapting() -> list[str]:
    """Names of the arguments of :func:`adapt` that a user gives besides the classes."""
    return [name for name in inspect.signature(adapt).parameters if name not in ("model", "classes")]


def _check(given: Mapping[str, Any], taken: set[str], what: str) -> None:
    """Raise a UserError for arguments that this kind of model does not take."""
    if wrong := [name for name, value in given.items() if value is not None and name not in taken]:
        listed = ", ".join(sorted(taken)) or "none of its own"
        raise UserError(f"{', '.join(wrong)}: not for {what}; it takes {listed}; leave the others out")


def _is_weights(path: Path) -> bool:
    return path.suffix in (".pt", ".pth", ".safetensors")


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Mean and deviation of a transformers folder's images."""
    path = folder / grown.PREPROCESSOR
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not values.get("do_normalize", "image_mean" in values):
            values |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
        keys = [key for key in ("mean", "std") if f"image_{key}" in values]
        found = {key: tuple(map(float, values[f"image_{key}"])) for key in keys}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    if values.get("do_flip_channel_order"):
        raise UserError(
            f"{path}: do_flip_channel_order: the model takes BGR, and images are given as RGB; give FILE.py:FUNCTION "
            "that returns a module that flips the channels and calls the model"
        )
    return found


def _own(saved: Checkpoint) -> Subject:
    """A model of wilson: the grown one is the checkpoint of a further step.

    How its probabilities are read is told by the method that trained it, or by the entry of a step that was added.
    """
    old, step = saved.task, saved.step

    def task(new: Sequence[str]) -> Task:
        ids = tuple(range(len(old.classes), len(old.classes) + len(new)))
        names = f"{old.name} + {', '.join(new)}"
        return Task(names, (*old.classes, *new), (*old.steps[: step + 1], ids))

    def write(model: SegmentationModel, config: Config, task: Task, entry: dict[str, Any], out: RunFolder) -> Path:
        ours = replace(config, model=saved.config.model, data=replace(saved.config.data, crop=config.data.crop))
        path = out.step(ADDED).checkpoint
        results = [*saved.results, {**entry, "step": step + 1, "softmax": model.softmax}]
        checkpoint.save_model(model, ours, task, step + 1, results, path)
        return path

    model = saved.model()
    added = saved.results[-1] if saved.results else {}
    model.softmax = bool(added.get("softmax", METHODS[saved.config.method].softmax))
    return Subject(
        model,
        old.class_names(step),
        old.seen(step),
        Normalization(*image_statistics(saved.config)),
        saved.config.model.stride,
        saved.config.data.crop,
        f"{saved.path}, a {saved.config.model.backbone} of wilson",
        "",
        sum(p.numel() for p in model.parameters()),
        lambda stride: _own(saved),
        task,
        write,
    )


def _adapted(
    model: Adapted, origin: str | None, named: bool = False, weights: str = "", settled: bool = True
) -> Subject:
    """A model of another library: the grown one is a folder with its own files."""
    names = model.names()

    def task(new: Sequence[str]) -> Task:
        everything = (*names, *new)
        ids = tuple(range(len(everything)))
        return Task(
            f"{len(names) - 1} classes + {', '.join(new)}", everything, (ids[1 : len(names)], ids[len(names) :])
        )

    def write(taught: SegmentationModel, config: Config, task: Task, entry: dict[str, Any], out: RunFolder) -> Path:
        assert isinstance(taught, Adapted)
        taught.rename(task.classes)
        grown.save(taught, config, task, [entry], out.model, origin)
        return out.model

    found = model.found
    place = None if origin is None else origin if builders.named(origin) else Path(origin).name
    kind = type(model.module).__name__ + (f" of {place}" if place else "")
    return Subject(
        model.eval(),
        names,
        tuple(range(len(names))),
        Normalization(model.mean, model.std),
        found.stride,
        found.size if found.multiple is None else None,
        kind,
        weights,
        found.parameters,
        lambda stride: _adapted(model if named else model.with_finer_features(stride), origin, named, weights, settled),
        task,
        write,
        settled,
    )

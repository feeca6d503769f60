"""Checkpoints: written whole or not at all, read without executing anything, verified by checksums."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from wilson import tensor_files
from wilson.atomic import replacing
from wilson.config import Config, from_dict, to_dict
from wilson.config.validation import short
from wilson.data.tasks import Task
from wilson.errors import UserError, first_line
from wilson.grown import Grown, inside
from wilson.models import SegmentationModel, Segmenter, new_model
from wilson.models.weight_files import not_finite, read_weights
from wilson.run_folder import CHECKPOINT, last_checkpoint

FORMAT = 1
SETTINGS, WEIGHTS = "config.json", "model.safetensors"  # of a model folder
INSIDE = "segmenter."  # the model within what the hub's library saves


def save(values: dict[str, Any], path: Path) -> None:
    """Write a file of plain values and tensors; readers see either the old file or the whole new one."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(values, file)


def load(path: Path) -> dict[str, Any]:
    """Read a file of plain values and tensors.

    Raises:
        UserError: the file is missing or is not a whole checkpoint.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file; give a {CHECKPOINT} that a run wrote")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is cut off, or no file of torch.save")
        values = tensor_files.read(path)
        if not isinstance(values, dict) or "format" not in values:
            raise ValueError("it has no format")
        if values["format"] != FORMAT:
            raise ValueError(f"format {short(values['format'])}, this version reads {FORMAT}")
    except ValueError as error:
        raise UserError(
            f"checkpoint {path}: not a whole checkpoint of this project ({error}); "
            "it may be truncated or written by another program; use another checkpoint, or train again"
        ) from error
    return values


def load_folder(folder: Path) -> dict[str, Any]:
    """Read a folder that `wilson save` wrote, as :func:`load` reads a file.

    Raises:
        UserError: a file is missing or damaged.
    """
    path = folder / SETTINGS
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {short(values['format'])}, this version reads {FORMAT}")
        values["config"] = values.pop("settings")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not the configuration of a model ({type(error).__name__}: {first_line(error)}); give a folder "
            f"that wilson save wrote, or a {CHECKPOINT}"
        ) from error
    weights, _ = read_weights(folder / WEIGHTS)
    return {**values, "weights": {name.removeprefix(INSIDE): value for name, value in weights.items()}}


def is_saved(folder: Path) -> bool:
    """Whether `wilson save` wrote this folder; those of transformers have a config.json, too."""
    path = folder / SETTINGS
    return path.is_file() and '"settings"' in path.read_text(encoding="utf-8", errors="replace")


class _Entry(TypedDict):
    """What every entry of results.json has; the others come with a later version or an option."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    step: int
    classes: list[str]
    iou: dict[str, float | None]
    miou: dict[str, float | None]
    pixel_accuracy: float | None


class _Content(TypedDict):
    """What the checkpoint of a step holds, besides its format."""

    __pydantic_config__ = ConfigDict(strict=True, arbitrary_types_allowed=True)  # type: ignore[misc]
    config: Any
    task: str
    classes: list[str]
    steps: list[list[int]]
    step: int
    results: list[_Entry]
    weights: dict[str, Tensor]


_CONTENT = TypeAdapter(_Content)


class Checkpoint:
    """The model after a step, with everything needed to use it: configuration, task, and results so far.

    Args:
        path: the file, or a folder that `wilson save` wrote.

    Raises:
        UserError: the file is missing, is not a whole checkpoint of a step, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        values = load_folder(path) if path.is_dir() else load(path)
        if "weights" not in values:
            raise UserError(f"checkpoint {path} is the training state of an unfinished step; give a {CHECKPOINT}")
        self.path = path
        try:
            found = _CONTENT.validate_python({key: values[key] for key in _Content.__annotations__ if key in values})
            self.config = _config(found["config"])
            self.task = Task(found["task"], tuple(found["classes"]), tuple(map(tuple, found["steps"])))
            self.step: int = found["step"]
            self.results: list[dict[str, Any]] = values["results"]
            self.weights: dict[str, Tensor] = values["weights"]
            self.task.check()
            self.task.new(self.step)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(
                f"checkpoint {path} is of another version or program ({where}: {first['msg']}); use that version, or "
                "train again"
            ) from None
        except UserError as error:
            raise UserError(f"checkpoint {path}: {error}") from error

    def model(self) -> Segmenter:
        """The segmentation model, in eval mode.

        Raises:
            UserError: a weight is missing, misshapen or not finite.
        """
        model = new_model(self.config.model, self.task.class_counts(self.step), self.config.data.crop, weights="none")
        wanted = model.state_dict()
        wrong = [name for name, value in wanted.items() if not _fits(self.weights.get(name), value)]
        if wrong := wrong or [name for name in self.weights if name not in wanted]:
            raise UserError(
                f"checkpoint {self.path}: its weights do not fit its configuration; {len(wrong)} tensors are missing, "
                f"superfluous or of another shape, the first {wrong[0]}; use another checkpoint, or train again"
            )
        model.load_state_dict(self.weights)
        if name := not_finite(model.state_dict()):
            raise UserError(
                f"checkpoint {self.path}: {name} holds values that are no finite numbers, so predictions would mean "
                "nothing; use another checkpoint, or train again with a lower learning rate"
            )
        return model.eval()


def open_model(path: Path, builder: str | None = None) -> Checkpoint | Grown:
    """Open a trained model, wherever it lies.

    Args:
        path: a checkpoint, a run's folder, whose last step counts, or a folder of `wilson save` or `wilson add`.
        builder: FILE.py:FUNCTION that returns the architecture, for a model that was built by one.

    Raises:
        UserError: there is no model.
    """
    if (folder := inside(path)) is not None:
        return Grown(folder, builder)
    return Checkpoint(last_checkpoint(path) or path)


def _fits(value: Tensor | None, wanted: Tensor) -> bool:
    return value is not None and value.shape == wanted.shape and value.dtype == wanted.dtype and not value.is_meta


def _config(values: Any) -> Config:
    try:
        return from_dict(values)
    except UserError as error:
        raise UserError(
            f"this version does not take its configuration ({error}); use the version that wrote it, or train again"
        ) from error


def save_model(
    model: SegmentationModel, config: Config, task: Task, step: int, results: list[dict[str, Any]], path: Path
) -> None:
    """Write the checkpoint of a step.

    Args:
        model: the model after the step.
        config: of the run.
        task: of the run.
        step: the step.
        results: entries of results.json up to this step.
        path: the file; an older one is replaced.
    """
    values = {
        "format": FORMAT,
        "config": to_dict(config),
        "task": task.name,
        "classes": list(task.classes),
        "steps": [list(ids) for ids in task.steps],
        "step": step,
        "results": results,
        "weights": model.state_dict(),
    }
    save(values, path)

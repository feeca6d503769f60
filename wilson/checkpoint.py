"""Checkpoints: written whole or not at all, read without executing anything, every byte checked."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from wilson.config import Config, from_dict, to_dict
from wilson.data.protocols import Task
from wilson.errors import UserError
from wilson.files import replacing
from wilson.models import Segmenter, build_segmenter
from wilson.models.backbone import normalization

FORMAT = 1
NAME = "checkpoint.pt"  # the model after a step
STATE = "training.pt"  # everything needed to continue within a step
PREVIOUS = "training.previous.pt"  # the same an epoch earlier, in case the disk damages the other


def save(values: dict[str, Any], path: Path) -> None:
    """Write a file of plain values and tensors: a reader sees the old file or the whole new one."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(values, file)


def load(path: Path) -> dict[str, Any]:
    """Read a file of plain values and tensors.

    Raises:
        UserError: the file is missing or not a whole checkpoint.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file; give a {NAME} that a run wrote")
    try:
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():  # torch.load compares no checksums
                raise ValueError(f"{damaged} in it is damaged")
        values = torch.load(path, map_location="cpu", weights_only=True)
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
    except Exception as error:  # torch has a dozen kinds for a broken file
        raise UserError(
            f"checkpoint {path}: not a whole checkpoint of this project ({_first_line(error)}); "
            "it may be cut short or of another program; use another one, or train again"
        ) from error
    return values


def save_state(values: dict[str, Any], folder: Path) -> None:
    """Write the training state of a step; the one before is kept beside it."""
    state = folder / STATE
    with replacing(state) as temporary:
        with temporary.open("wb") as file:
            torch.save(values, file)
        if state.exists():
            state.replace(folder / PREVIOUS)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest whole training state of a step; None if there is none at all.

    Raises:
        UserError: there are states, but none is whole.
    """
    damaged = []
    for path in (folder / STATE, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            values = load(path)
        except UserError:
            damaged.append(path)
            continue
        if damaged:
            print(f"{damaged[0]} is damaged; going on from {path}, after epoch {values['epoch']}", flush=True)
            damaged[0].unlink(missing_ok=True)  # or the next state written would push the whole one out
        return values
    if damaged:
        names = " and ".join(map(str, damaged))
        raise UserError(f"{names}: damaged or of another program; remove, and --resume trains the step from its start")
    return None


def remove_state(folder: Path) -> None:
    """Remove the training state of a step that is complete."""
    for name in (STATE, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class Checkpoint:
    """The model after a step, with all that is needed to use it: configuration, task, results so far."""

    def __init__(self, path: Path) -> None:
        values = load(path)
        if "weights" not in values:
            raise UserError(f"checkpoint {path} is the training state of an unfinished step; give a {NAME} instead")
        self.path = path
        try:
            self.config: Config = from_dict(values["config"])
            self.task = Task(values["task"], tuple(values["classes"]), tuple(tuple(s) for s in values["steps"]))
            self.step: int = values["step"]
            self.results: list[dict[str, Any]] = values["results"]
            self.weights: dict[str, torch.Tensor] = values["weights"]
        except UserError as error:
            raise UserError(f"checkpoint {path}: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"checkpoint {path} is of another version ({_first_line(error)}); use that version, or train again"
            ) from error

    def model(self) -> Segmenter:
        """The segmentation model, in eval mode."""
        model = new_model(self.config, self.task, self.step, weights="none")
        model.load_state_dict(self.weights)
        return model.eval()


def save_model(
    model: Segmenter, config: Config, task: Task, step: int, results: list[dict[str, Any]], path: Path
) -> None:
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


def image_statistics(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that images are normalised by: the configuration's, else the backbone's."""
    mean, std = normalization(config.model.backbone)
    return config.data.mean or mean, config.data.std or std


def new_model(config: Config, task: Task, step: int, weights: str) -> Segmenter:
    """A fresh model with the classifiers of steps 0 to `step`."""
    m = config.model
    classes = [len(task.new(t)) + (t == 0) for t in range(step + 1)]
    return build_segmenter(
        m.backbone, m.stride, weights, m.head_channels, classes, config.data.crop, m.dilations, m.activation
    )

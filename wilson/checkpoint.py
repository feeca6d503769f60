"""Checkpoints: written whole or not at all, read without executing anything, verified by checksums."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from wilson.atomic import replacing
from wilson.config import Config, from_dict, to_dict
from wilson.data.tasks import Task
from wilson.errors import UserError, first_line
from wilson.models import SegmentationModel, Segmenter, new_model
from wilson.run_folder import CHECKPOINT

FORMAT = 1


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
        with zipfile.ZipFile(path) as file:
            if damaged := file.testzip():  # torch.load compares no checksums
                raise ValueError(f"{damaged} in it is damaged")
        values = torch.load(path, map_location="cpu", weights_only=True)
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
    except Exception as error:  # torch has a dozen kinds for a broken file
        raise UserError(
            f"checkpoint {path}: not a whole checkpoint of this project ({first_line(error)}); "
            "it may be truncated or written by another program; use another checkpoint, or train again"
        ) from error
    return values


class Checkpoint:
    """The model after a step, with everything needed to use it: configuration, task, and results so far.

    Args:
        path: the file.

    Raises:
        UserError: the file is missing, is not a whole checkpoint of a step, or is of another version.
    """

    def __init__(self, path: Path) -> None:
        values = load(path)
        if "weights" not in values:
            raise UserError(f"checkpoint {path} is the training state of an unfinished step; give a {CHECKPOINT}")
        self.path = path
        try:
            self.config = _config(values["config"])
            self.task = Task(values["task"], tuple(values["classes"]), tuple(tuple(s) for s in values["steps"]))
            self.step: int = values["step"]
            self.results: list[dict[str, Any]] = values["results"]
            self.weights: dict[str, torch.Tensor] = values["weights"]
        except UserError as error:
            raise UserError(f"checkpoint {path}: {error}") from error
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"checkpoint {path} is of another version ({first_line(error)}); use that version, or train again"
            ) from error

    def model(self) -> Segmenter:
        """The segmentation model, in eval mode."""
        model = new_model(self.config.model, self.task.class_counts(self.step), self.config.data.crop, weights="none")
        model.load_state_dict(self.weights)
        return model.eval()


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

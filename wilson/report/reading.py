"""Read run folders: configuration, results, training curves and panels."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from wilson.errors import UserError
from wilson.report import confusion, panels
from wilson.run_folder import RunFolder, StepFolder

Curve = tuple[list[int], list[float]]
"""Iterations and values of one TensorBoard scalar."""


Means = dict[str, float | None]
"""Mean IoU in percent of "old", "new" and "all"; empty if it was not measured."""


@dataclass(frozen=True)
class Step:
    """One step's results (percent; None where a class is absent from the ground truth), curves and pictures.

    `training` counts the images that the step learned from; it is empty if the run did not say.

    `miou` leaves the background out of "old" and "new" and includes it in "all", as published. So do `localizer` and
    `step_validation`, which is the model's score on the incremental steps' own data set.
    """

    step: int
    classes: list[str]
    iou: dict[str, float | None]
    miou: Means
    pixel_accuracy: float | None
    with_background: Means
    without_background: Means
    localizer: Means
    step_validation: Means
    training: dict[str, Any]
    curves: dict[str, Curve]
    panels: panels.Panels | None
    confusion: confusion.Confusion | None


@dataclass(frozen=True)
class Run:
    """One run folder.

    `config` is the text of config.yaml, `settings` its parsed form, `command` the text of command.txt. Each is empty if
    the file is missing.
    """

    path: Path
    method: str
    task: str
    protocol: str
    seed: int
    steps: list[Step]
    config: str
    settings: dict[str, Any]
    command: str


def read_all(folders: Sequence[Path]) -> list[Run]:
    """Read run folders.

    Args:
        folders: at least one.

    Returns:
        The runs in the same order.

    Raises:
        UserError: no folder was given, or one is no run folder.
    """
    if not folders:
        raise UserError("report: no run folder was given; name one or more, each with a results.json")
    return [read(Path(folder)) for folder in folders]


def read(folder: Path) -> Run:
    """Read one run folder.

    Args:
        folder: as the training loop writes it; results.json is required.

    Returns:
        The run.

    Raises:
        UserError: the folder or its results.json is missing or unreadable.
    """
    results = _results(folder)
    files = RunFolder(folder)
    config = _text(files.config)
    try:
        settings = yaml.safe_load(config)
    except yaml.YAMLError:
        settings = None
    try:
        return Run(
            path=folder,
            method=str(results["method"]),
            task=str(results["task"]),
            protocol=str(results["protocol"]),
            seed=int(results["seed"]),
            steps=[_step(folder, entry) for entry in results["steps"]],
            config=config,
            settings=settings if isinstance(settings, dict) else {},
            command=_text(files.command),
        )
    except KeyError as error:
        raise UserError(
            f"report: {files.results} has no entry {error}; expected the results.json of `wilson run`"
        ) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"report: {files.results} is not in the form that `wilson run` writes ({error})") from None


def _results(folder: Path) -> dict[str, Any]:
    path = RunFolder(folder).results
    if not folder.is_dir():
        raise UserError(f"report: {folder} is not a folder; give the run folder that `wilson run` wrote")
    if not path.is_file():
        inside = sorted(child.name for child in folder.iterdir() if RunFolder(child).results.is_file())
        remedy = (
            f"it holds the run folders {', '.join(inside)}: name those"
            if inside
            else "give a folder that `wilson run` wrote, after its first step was evaluated"
        )
        raise UserError(f"report: {folder} is no run folder, results.json is missing; {remedy}")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"report: {path} is not valid JSON ({error}); wilson run --resume writes it again") from None
    if not isinstance(results, dict):
        raise UserError(f"report: {path} holds no results; expected an object with method, task, protocol, seed, steps")
    return results


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def step(entry: dict[str, Any]) -> Step:
    """Read one step's results, without curves and pictures, from an entry of results.json."""
    return Step(
        step=int(entry["step"]),
        classes=[str(name) for name in entry["classes"]],
        iou={name: _percent(value) for name, value in entry["iou"].items()},
        miou={kind: _percent(entry["miou"][kind]) for kind in ("old", "new", "all")},
        pixel_accuracy=_percent(entry["pixel_accuracy"]),
        with_background=_means(entry.get("miou_with_background")),
        without_background=_means(entry.get("miou_without_background")),
        localizer=_means((entry.get("localizer") or {}).get("miou")),
        step_validation=_means((entry.get("step_validation") or {}).get("miou")),
        training=dict(entry.get("training") or {}),
        curves={},
        panels=None,
        confusion=None,
    )


def _step(folder: Path, entry: dict[str, Any]) -> Step:
    found = step(entry)
    files = RunFolder(folder).step(found.step)
    return replace(found, curves=curves(files), panels=panels.read(files.panels), confusion=confusion.read(files))


def _means(values: dict[str, float | None] | None) -> Means:
    return {kind: _percent(value) for kind, value in (values or {}).items()}


def _percent(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def curves(folder: StepFolder) -> dict[str, Curve]:
    """Read the TensorBoard scalars of a step by tag; if a resumed run logged an iteration again, its value counts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.logs():
        return {}
    accumulator = EventAccumulator(str(folder.path), size_guidance={"scalars": 0})
    accumulator.Reload()
    found = {}
    for tag in accumulator.Tags()["scalars"]:
        values = {event.step: event.value for event in accumulator.Scalars(tag)}
        found[tag] = (sorted(values), [values[step] for step in sorted(values)])
    return found

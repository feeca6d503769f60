"""A run: the steps of a task one after the other, in one folder.

config.yaml        the configuration used
command.txt        the command line
results.json       IoU and mean IoU after each step
step-T/            checkpoint.pt, TensorBoard log, panels; training.pt while the step is unfinished
report.html        all of it for a person
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wilson import checkpoint, evaluate, panels, report, train
from wilson.checkpoint import Checkpoint
from wilson.config import Config
from wilson.data.dataset import StepDataset
from wilson.experiment import Experiment, build_method, check_batch, check_single_class, check_start
from wilson.folder import REPORT, prepare_folder, write_results


def run(
    config: Config,
    out: Path,
    *,
    steps: Sequence[int] | None = None,
    start: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """Train steps of a task, evaluate after each, and write the report.

    Args:
        config: what to do.
        out: the run's folder; made if missing, refused if not empty unless `resume` or `overwrite`.
        steps: which steps, consecutive; None for all. Steps after 0 need `start` unless step 0 is among them.
        start: checkpoint of the step before the first one.
        resume: continue where the run in `out` stopped.
        overwrite: remove what `out` holds first.

    Returns:
        `out`.

    Raises:
        UserError: anything that a user can mend.
    """
    experiment = Experiment.open(config)
    chosen = list(experiment.steps() if steps is None else steps)
    old = check_start(experiment, chosen, start)
    check_single_class(experiment, chosen)
    datasets = {step: experiment.training_set(step) for step in chosen}
    for step, dataset in datasets.items():
        check_batch(step, len(dataset), config.for_step(step).batch)
    prepare_folder(out, config, resume=resume, overwrite=overwrite)

    results = old.results if old else []
    for step in chosen:
        path = out / f"step-{step}" / checkpoint.NAME
        if not (resume and path.exists()):
            results = [*results, train_step(experiment, datasets[step], step, path, old, results, resume)]
        old = Checkpoint(path)
        results = old.results
        write_results(out, config, results)
    report.write([out], out / REPORT)
    print(f"{out / REPORT}", flush=True)
    return out


def train_step(
    experiment: Experiment,
    dataset: StepDataset,
    step: int,
    path: Path,
    old: Checkpoint | None,
    results: list[dict[str, Any]],
    resume: bool,
) -> dict[str, Any]:
    """Train one step, write its checkpoint and panels, and return its entry in results.json."""
    config, task = experiment.config, experiment.task
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed * 1000 + step)
    # channels last: what convolutions are fastest in, on CPUs as on GPUs
    method = build_method(experiment, step, old).to(experiment.device).to(memory_format=torch.channels_last)
    validation = experiment.validation_set(step)
    settings = config.for_step(step)
    loader = train.make_loader(validation, settings.batch, config.data.workers, experiment.device)
    names, seen_before = task.class_names(step), len(task.seen(step - 1)) if step else 1

    def look(board: Any, iteration: int) -> dict[str, Any]:
        matrix = evaluate.confusion_matrix(method.model, loader, len(names), experiment.device)
        entry = evaluate.scores(matrix, names, seen_before, step)
        for group, value in entry["miou"].items():
            if value is not None:
                board.add_scalar(f"validation/miou_{group}", value, iteration)
        panels.log(board, iteration, method, experiment, validation)
        print(f"step {step}: {evaluate.summary(entry)}", flush=True)
        return entry

    print(f"step {step} ({config.method if step else 'base'}): {len(dataset)} images, {len(names)} classes", flush=True)
    entry = train.fit(
        method, dataset, config, settings, folder, experiment.normalization, look,
        resume=resume, title=f"step {step}",
    )  # fmt: skip
    panels.write(folder / "panels", method, experiment, validation, step)
    checkpoint.save_model(method.model, config, task, step, [*results, entry], path)
    (folder / checkpoint.STATE).unlink(missing_ok=True)
    return entry

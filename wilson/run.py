"""A run: the steps of a task one after the other, in one folder.

config.yaml        the configuration used
command.txt        the command line
results.json       IoU and mean IoU after each step
steps.csv, .png    mIoU of each step's classes after every later step, from three steps on
step-T/            checkpoint.pt, TensorBoard log, panels, confusion matrix; training.pt while the step is unfinished
report.html        all of it for a person
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wilson import checkpoint, distributed, evaluate, panels, report, train
from wilson.checkpoint import Checkpoint
from wilson.config import Config
from wilson.data.dataset import StepDataset
from wilson.experiment import Experiment, build_method, check_batch, check_single_class, check_start, choose_device
from wilson.folder import REPORT, prepare_folder, write_results
from wilson.report import confusion
from wilson.report import steps as course


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
    with distributed.session(choose_device(config.device)):
        if distributed.anywhere(distributed.restarted()):
            resume, overwrite = True, False
        out = distributed.from_main(out)
        with distributed.main_first():
            experiment = Experiment.open(config)
            chosen = list(experiment.steps() if steps is None else steps)
            old = check_start(experiment, chosen, start)
            check_single_class(experiment, chosen)
            datasets = {step: experiment.training_set(step) for step in chosen}
            for step, dataset in datasets.items():
                check_batch(step, dataset, config.for_step(step))
            if distributed.is_main():
                prepare_folder(out, config, resume=resume, overwrite=overwrite)

        results = old.results if old else []
        for step in chosen:
            path = out / f"step-{step}" / checkpoint.NAME
            if not distributed.from_main(resume and path.exists()):
                results = [*results, train_step(experiment, datasets[step], step, path, old, results, resume)]
            distributed.wait()  # for the checkpoint
            old = Checkpoint(path)
            results = old.results
            if distributed.is_main():
                checkpoint.remove_state(path.parent)
                write_results(out, config, results)
        if distributed.is_main():
            if len(results) >= course.LEAST:
                print(course.write(out, results), flush=True)
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

    def look(board: Any, iteration: int) -> tuple[dict[str, Any], torch.Tensor]:
        entry, matrix = evaluate.evaluate_step(method, loader, names, seen_before, step, experiment.device)
        if distributed.is_main():
            for tag, value in evaluate.scalars(entry).items():
                board.add_scalar(tag, value, iteration)
            panels.log(board, iteration, method, experiment, validation)
            print(f"step {step}: {evaluate.summary(entry)}", flush=True)
        return entry, matrix

    if distributed.is_main():
        what = config.method if step else "base"
        print(f"step {step} ({what}): {len(dataset)} images, {len(names)} classes", flush=True)
    entry, matrix = train.fit(
        method, dataset, config, settings, folder, experiment.normalization, look,
        resume=resume, title=f"step {step}",
    )  # fmt: skip
    if config.data.skip_corrupt:
        entry["skipped"] = experiment.skipped(step)
    if (others := experiment.step_validation_set(step)) is not None:
        batches = train.make_loader(others, settings.batch, config.data.workers, experiment.device)
        theirs = evaluate.confusion_matrix(method.model, batches, len(names), experiment.device)
        entry["step_validation"] = evaluate.scores(theirs, names, seen_before, step)
    if distributed.is_main():
        panels.write(folder / "panels", method, experiment, validation, step)
        confusion.write(folder, names, matrix, seen_before)
        checkpoint.save_model(method.model, config, task, step, [*results, entry], path)
    return entry

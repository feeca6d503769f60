"""A run: the steps of a task one after the other, in one folder. `wilson.run_folder` lists the files there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wilson import checkpoint, distributed, report
from wilson.checkpoint import Checkpoint
from wilson.config import Config
from wilson.data.dataset import StepDataset
from wilson.data.loading import batches, make_loader
from wilson.distributed import choose_device
from wilson.errors import UserError
from wilson.evaluation import metrics
from wilson.evaluation.evaluate import evaluate_step
from wilson.evaluation.segment import segment
from wilson.report import confusion
from wilson.report import steps as course
from wilson.run_folder import RunFolder, StepFolder
from wilson.training import seeds, state
from wilson.training.cost import Cost
from wilson.training.loop import fit
from wilson.training.merging import merge_weights

from . import examples
from .checks import check_batch, check_classes, check_maps, check_single_class, check_start
from .experiment import Experiment
from .folder import prepared, write_results


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
        config: what to train.
        out: the run's folder; created if missing, refused if not empty unless `resume` or `overwrite`.
        steps: consecutive steps to train; None for all. Steps after 0 need `start` unless step 0 is among them.
        start: checkpoint of the step before the first one.
        resume: continue where the run in `out` stopped.
        overwrite: remove what `out` holds first.

    Returns:
        `out`.

    Raises:
        UserError: a mistake that the user can fix.
    """
    with distributed.session(choose_device(config.device)), ExitStack() as ours:
        if distributed.anywhere(distributed.restarted()):
            resume, overwrite = True, False
        out = distributed.from_main(out)
        folder = RunFolder(out)
        with distributed.main_first():
            experiment = Experiment.open(config)
            chosen = list(experiment.steps() if steps is None else steps)
            old = check_start(experiment, chosen, start)
            check_single_class(experiment, chosen)
            datasets = {step: experiment.training_set(step) for step in chosen}
            for step, dataset in datasets.items():
                check_batch(step, dataset, config.for_step(step))
                check_classes(experiment, step, dataset)
                check_maps(dataset)
            if old is None and not (resume and folder.step(chosen[0]).checkpoint.exists()):
                experiment.build_method(chosen[0], None)  # weights that cannot be fetched or do not fit are told here
            if distributed.is_main():
                known = experiment.data()
                ours.enter_context(prepared(out, config, known, resume=resume, overwrite=overwrite))

        for step in chosen:
            files = folder.step(step)
            if not distributed.from_main(resume and distributed.is_main() and is_complete(files)):
                train_step(experiment, datasets[step], step, files, old, resume)
            distributed.wait()  # the first process writes the checkpoint
            old = Checkpoint(files.checkpoint)
            if distributed.is_main():
                state.remove(files)
                write_results(folder, config, old.results)
        if distributed.is_main():
            results = old.results if old else []
            if len(results) >= course.LEAST:
                print(course.write(folder, results), flush=True)
            report.write([out], folder.report)
            print(folder.report, flush=True)
    return out


def is_complete(files: StepFolder) -> bool:
    """Whether a step has a checkpoint, so that it need not be trained.

    Raises:
        UserError: the checkpoint is damaged, and nothing else of the step is left.
    """
    if not files.checkpoint.exists():
        return False
    try:
        Checkpoint(files.checkpoint)
    except UserError as error:
        if not state.present(files):
            raise UserError(
                f"{error}. To train this step alone again, move the file away and use --resume; the result is the same"
            ) from error
        print(f"{error}; going on from the training state beside it", flush=True)
        return False
    return True


def train_step(
    experiment: Experiment, dataset: StepDataset, step: int, folder: StepFolder, old: Checkpoint | None, resume: bool
) -> None:
    """Train one step, and write its pictures and its checkpoint, which holds its entry of results.json, too."""
    config, task, device = experiment.config, experiment.task, experiment.device
    folder.path.mkdir(parents=True, exist_ok=True)
    cost = Cost(folder, device, resume)
    torch.manual_seed(seeds.of_step(config.seed, step))
    # convolutions are fastest in channels-last format, on CPUs as on GPUs
    method = experiment.build_method(step, old).to(device).to(memory_format=torch.channels_last)
    validation, settings = experiment.validation_set(step), config.for_step(step)
    loader = make_loader(validation, settings.batch, config.data.workers, device)
    names, before = task.class_names(step), task.channels_before(step)

    def evaluated(when: str = "") -> tuple[dict[str, Any], Tensor]:
        moved = batches(loader, device, experiment.normalization)
        entry, matrix = evaluate_step(method, moved, names, before, step)
        if distributed.is_main():
            print(f"step {step}{when}: {metrics.summary(entry)}", flush=True)
        return entry, matrix

    def look(board: Any, iteration: int) -> tuple[dict[str, Any], Tensor]:
        entry, matrix = evaluated()
        if distributed.is_main():
            for tag, value in metrics.scalars(entry).items():
                board.add_scalar(tag, value, iteration)
            examples.log(board, iteration, method, experiment, validation)
        return entry, matrix

    if distributed.is_main():
        what = config.method if step else "base"
        print(f"step {step} ({what}): {learned_from(dataset, settings.batch)}, {len(names)} classes", flush=True)
        if dataset.absent:
            print(f"warning: no training image holds {', '.join(dataset.absent)}: it cannot be learned", flush=True)
    entry, matrix = fit(
        method, dataset, config, settings, folder, experiment.normalization, look, cost,
        resume=resume, title=f"step {step}", score=mean_iou if config.keep_best else None,
    )  # fmt: skip
    if config.weight_merge == "ewf" and old is not None:
        merge_weights(method.model, old.model(), len(task.new(step)), before - 1)
        entry, matrix = evaluated(", weights merged")
    entry["training"] = {
        "images": len(dataset),
        "negatives": len(dataset.negatives.names) if dataset.negatives else 0,
        "negatives_in_batch": dataset.places(settings.batch)["negatives"],
        "absent": dataset.absent,
    }
    if config.data.skip_corrupt:
        entry["skipped"] = experiment.skipped(step)
    if (others := experiment.step_validation_set(step)) is not None:
        loader = make_loader(others, settings.batch, config.data.workers, device)
        moved = batches(loader, device, experiment.normalization)
        (theirs,) = metrics.confusion_matrices(method.model, moved, len(names), [partial(segment, method.model)])
        entry["step_validation"] = metrics.scores(theirs, names, before, step)
    cost.keep()
    if distributed.is_main():
        examples.write(folder.panels, method, experiment, validation, step)
        confusion.write(folder, names, matrix, before)
        results = [*(old.results if old else []), entry]
        checkpoint.save_model(method.model, config, task, step, results, folder.checkpoint)


def learned_from(dataset: StepDataset, batch: int) -> str:
    """The numbers of a step's images in words."""
    places = dataset.places(batch)
    words = [f"{len(dataset)} images"]
    if dataset.negatives is not None:
        words.append(f"{len(dataset.negatives.names)} negatives ({places['negatives']} in each batch of {batch})")
    if dataset.replay is not None:
        words.append(f"{len(dataset.replay.indices)} replayed images ({places['replayed']} in each batch of {batch})")
    return " and ".join(words)


def mean_iou(evaluated: tuple[dict[str, Any], Tensor]) -> float:
    """What the best epoch is chosen by: the mean IoU of all classes on the validation images."""
    return evaluated[0]["miou"]["all"] or 0.0

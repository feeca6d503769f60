"""Refuse, before anything is trained, settings that do not fit together or do not fit the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wilson import distributed
from wilson.checkpoint import Checkpoint
from wilson.config import StepConfig
from wilson.data.dataset import StepDataset
from wilson.errors import UserError
from wilson.methods import METHODS
from wilson.run_folder import CHECKPOINT

from .experiment import Experiment


def check_start(experiment: Experiment, steps: list[int], start: Path | None) -> Checkpoint | None:
    """The checkpoint to start from, checked against task and network; None for step 0 and offline.

    Raises:
        UserError: the task has no such step, or the checkpoint is missing, superfluous, or of another task or network.
    """
    task, config = experiment.task, experiment.config
    for step in steps:
        if step not in experiment.steps():
            raise UserError(
                f"task {task.name} with method {config.method} has steps {list(experiment.steps())}, not {step}"
            )
    if steps[0] == 0 or config.method == "offline":
        if start is not None:
            raise UserError("a base step starts from the backbone's weights; leave the checkpoint out")
        return None
    if start is None:
        raise UserError(
            f"step {steps[0]} needs the checkpoint of step {steps[0] - 1}: --start RUN/step-{steps[0] - 1}/{CHECKPOINT}"
        )
    old = Checkpoint(start)
    if (
        old.step != steps[0] - 1
        or old.task.seen(old.step) != task.seen(steps[0] - 1)
        or old.task.classes != task.classes
    ):
        raise UserError(
            f"checkpoint {start} is of task {old.task.name}, step {old.step}, with classes "
            f"{', '.join(old.task.class_names(old.step))}; task {task.name}, step {steps[0]} needs one with "
            f"{', '.join(task.class_names(steps[0] - 1))}"
        )
    ours, theirs = replace(config.model, weights=""), replace(old.config.model, weights="")
    if ours != theirs:
        raise UserError(f"checkpoint {start} has the network {theirs}, not {ours}; give the same model options")
    return old


def check_batch(step: int, dataset: StepDataset, settings: StepConfig) -> None:
    """Raise a UserError if a batch is too large for the images, or too small for its parts or for batch-norm."""
    batch, parts = settings.batch, settings.accumulate
    if len(dataset.sampler(batch)) < batch:
        raise UserError(f"step {step} has {len(dataset)} images, fewer than a batch of {batch}; choose a smaller batch")
    if batch < parts * distributed.processes():
        raise UserError(
            f"step {step}: a batch of {batch} images cannot be shared out to {distributed.processes()} processes in "
            f"{parts} parts each; choose a larger batch, or fewer processes or parts (--step.accumulate)"
        )
    if batch // parts < 2 and not settings.freeze_norm:
        raise UserError(
            f"step {step}: a batch of {batch} in {parts} parts leaves single images to batch-norm, which needs two or "
            "more; choose a larger batch, fewer parts (--step.accumulate), or --step.freeze-norm"
        )


def check_single_class(experiment: Experiment, steps: list[int]) -> None:
    """Raise a UserError for a step that adds a single class and has no negative examples of it."""
    config, task = experiment.config, experiment.task
    if METHODS[config.method].pixel_supervised or config.all_labels:
        return
    for step in steps:
        if step and len(task.new(step)) == 1 and experiment.negatives_of(step) is None:
            raise UserError(
                f"step {step} of task {task.name} adds the single class {task.class_names(step)[-1]}: its image-level "
                "labels alone give no negative examples, so it cannot be learned; add images without it "
                "(--data.negatives FOLDER, without a class in --data.labels, or --data.find-negatives), labels of all "
                "classes (--all-labels) or classes to the step"
            )


def check_classes(experiment: Experiment, step: int, dataset: StepDataset) -> None:
    """Raise a UserError if `data.labels`, which the user gave for this very step, lacks one of its classes.

    Other data may lack a class because it is a small part of a known data set: such a step is trained with a warning.
    """
    labels = experiment.config.data.labels
    if labels is not None and not dataset.dense and dataset.absent:
        raise UserError(
            f"step {step}: no image of {labels} has the label {' or '.join(dataset.absent)}, so the step cannot learn "
            "it; add images of it, or leave the class out of the task"
        )

"""Refuse, before anything is trained, settings that do not fit together or do not fit the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from wilson import distributed
from wilson.checkpoint import Checkpoint
from wilson.config import StepConfig
from wilson.data.dataset import StepDataset
from wilson.data.sources.base import image_size
from wilson.errors import UserError
from wilson.methods import METHODS
from wilson.run_folder import CHECKPOINT

from .experiment import Experiment, prior_maps

# What a step with one class, of photographs of horses, was seen to end with
SINGLE = (
    "only the maps tell where it is not. In a trial on photographs, horse alone without negatives, the mIoU of all "
    "classes was 0.6 without maps, 23.7 with maps as a loss, 28.6 with maps mixed in by 0.8, and 27.8 for the model "
    "before the step. Images without the class help, too (--data.negatives)"
)
OLD_LABELS = (
    "the labels of old classes do not tell where the class is not. In trials on photographs, horse alone, the mIoU of "
    "all classes was 10.2 to 12.2 with --all-labels, and 27.0 to 29.3 with negatives in place of them. Use images "
    "without the class in place of --all-labels (--data.negatives, --data.find-negatives)"
)


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
    if len(dataset.sampler(batch, settings.passes)) < batch:
        raise UserError(
            f"step {step} has {len(dataset)} images, fewer than a batch of {batch}; choose a smaller batch, or more "
            f"passes an epoch (--{'step' if step else 'base'}.passes)"
        )
    if batch < parts * distributed.processes():
        raise UserError(
            f"step {step}: a batch of {batch} images cannot be shared out to {distributed.processes()} processes in "
            f"{parts} parts each; choose a larger batch, or fewer processes or parts (--step.accumulate)"
        )
    shares = parts * distributed.processes()
    if (replayed := dataset.places(batch)["replayed"]) and batch // shares <= replayed:
        raise UserError(
            f"step {step}: {replayed} replayed images fill one of the {shares} parts of a batch of {batch}; choose a "
            "smaller --data.replay-share, a larger batch, or fewer processes or parts"
        )
    if batch // parts < 2 and not settings.freeze_norm:
        raise UserError(
            f"step {step}: a batch of {batch} in {parts} parts leaves single images to batch-norm, which needs two or "
            "more; choose a larger batch, fewer parts (--step.accumulate), or --step.freeze-norm"
        )


def check_single_class(experiment: Experiment, steps: list[int]) -> None:
    """Raise a UserError for a step that adds a single class without negative examples of it.

    Maps and the labels of old classes lift the refusal, with a warning that says what was seen.
    """
    config, task = experiment.config, experiment.task
    if METHODS[config.method].pixel_supervised:
        return
    for step in steps:
        if not step or len(task.new(step)) > 1 or experiment.negatives_of(step) is not None:
            continue
        adds = f"step {step} of task {task.name} adds the single class {task.class_names(step)[-1]}"
        maps = prior_maps(config) is not None
        if not maps and not config.all_labels:
            raise UserError(
                f"{adds}: its image-level labels alone give no negative examples, so it cannot be learned; add images "
                "without it (--data.negatives FOLDER, without a class in --data.labels, or --data.find-negatives), "
                "maps of it (--data.prior) or classes to the step"
            )
        if distributed.is_main():
            print(f"warning: {adds} and has no negatives: {SINGLE if maps else OLD_LABELS}", flush=True)


def check_maps(dataset: StepDataset) -> None:
    """Read all prior maps and regions of a step once; UserError for the first file that is broken or does not fit."""
    if (dataset.prior is None and dataset.regions is None) or not distributed.is_main():
        return
    for index in tqdm(dataset.indices, desc="Reading maps", unit="file"):
        name, size = dataset.source.names[index], image_size(dataset.source, index)
        if dataset.prior is not None:
            dataset.prior.read(name, size)
        if dataset.regions is not None:
            dataset.regions.read(name, size, next(iter(dataset.source.files(index)), None))


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

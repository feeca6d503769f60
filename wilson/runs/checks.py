"""What is refused before anything is trained: settings that do not fit together, or do not fit the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wilson import distributed
from wilson.checkpoint import Checkpoint
from wilson.config import Config, StepConfig
from wilson.data.dataset import StepDataset
from wilson.errors import UserError
from wilson.methods import METHODS, TwoStage
from wilson.run_folder import CHECKPOINT

if TYPE_CHECKING:
    from .experiment import Experiment


def check_method(config: Config) -> None:
    """UserError if the method lacks what it needs."""
    step, kind = config.step, METHODS[config.method]
    if issubclass(kind, TwoStage) and not 0 < step.warmup < step.epochs:
        raise UserError(
            f"method {config.method} trains its localizer in the warm-up epochs and the model in those after them; "
            f"expected --step.warmup from 1 to {step.epochs - 1}, got {step.warmup}"
        )
    if config.method == "eps" and config.data.saliency is None:
        raise UserError("method eps learns from saliency maps; give a folder of them with --data.saliency")


def check_start(experiment: Experiment, steps: list[int], start: Path | None) -> Checkpoint | None:
    """The checkpoint to start from, checked against task and network; None for step 0 and offline."""
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
    config, task = experiment.config, experiment.task
    if METHODS[config.method].pixel_supervised or config.all_labels or experiment.negatives is not None:
        return
    for step in steps:
        if step and len(task.new(step)) == 1:
            raise UserError(
                f"step {step} of task {task.name} adds the single class {task.class_names(step)[-1]}: its image-level "
                "labels alone give no negative examples, so it cannot be learned; add images without it "
                "(--data.negatives FOLDER, or without a class in --data.labels), labels of all classes "
                "(--all-labels) or classes to the step"
            )

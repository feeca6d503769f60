"""What the steps of a run share: data, task, device, and the method of each step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wilson import checkpoint, distributed, images
from wilson.checkpoint import Checkpoint, image_statistics
from wilson.config import Config, StepConfig
from wilson.data import class_sets
from wilson.data.dataset import StepDataset
from wilson.data.protocols import Task, select
from wilson.data.sources import VOID, ImageSource
from wilson.data.transforms import evaluate as evaluation_transform
from wilson.data.transforms import train as training_transform
from wilson.errors import UserError
from wilson.methods import METHODS, FinetunePixel, Method, Settings, Supervised, TwoStage


@dataclass(frozen=True)
class Experiment:
    """What all steps of a run share."""

    config: Config
    task: Task
    training: ImageSource
    incremental: ImageSource  # for the steps after the first
    negatives: ImageSource | None
    validation: ImageSource
    step_validation: ImageSource | None
    device: torch.device
    normalization: tuple[tuple[float, ...], tuple[float, ...]]

    @classmethod
    def open(cls, config: Config) -> Experiment:
        """Open the data and check the configuration against it, before anything is written."""
        check_method(config)
        training = images.training(config)
        task = Task.parse(config.task, training.classes)
        validation = images.validation(config, task.classes)
        step_validation = images.step_validation(config, task.classes)
        tests = [validation] if step_validation is None else [validation, step_validation]
        return cls(
            config,
            task,
            training,
            *images.incremental(config, training, tests),
            validation,
            step_validation,
            choose_device(config.device),
            image_statistics(config),
        )

    def steps(self) -> range:
        """The steps to train: all of the task, or the last one alone with dense labels of all classes (offline)."""
        last = len(self.task.steps) - 1
        return range(last, last + 1) if self.config.method == "offline" else range(last + 1)

    def training_set(self, step: int) -> StepDataset:
        config = self.config
        all_masks = config.method == "offline" or (step > 0 and config.method == "joint")
        source = self.training if step == 0 or all_masks else self.incremental
        if all_masks:
            everything = replace(self.task, steps=(self.task.seen(step)[1:],))
            indices = select(class_sets(source), everything, 0, "overlap")
        else:
            indices = select(class_sets(source), self.task, step, config.protocol)
        dense = step == 0 or METHODS[config.method].pixel_supervised
        return StepDataset(
            source,
            indices,
            self.task,
            step,
            training_transform(config.data.crop, *self.normalization),
            dense=dense,
            seed=config.seed,
            all_labels=config.all_labels,
            old_masks=all_masks,
            ignore=VOID if source.crowds else None,
            negatives=None if dense else self.negatives,
            negative_share=config.data.negative_share,
            saliency=Path(config.data.saliency) if config.method == "eps" and step and config.data.saliency else None,
        )

    def validation_set(self, step: int) -> StepDataset:
        return validation_set(self.config, self.validation, self.task, step)

    def step_validation_set(self, step: int) -> StepDataset | None:
        """The validation images of the incremental steps' own data set; None without one, and for the base step."""
        if step == 0 or self.step_validation is None:
            return None
        return validation_set(self.config, self.step_validation, self.task, step)

    def skipped(self, step: int) -> dict[str, int]:
        """Images of each part that were left out because they cannot be used, for results.json."""
        dataset = self.training_set(step)
        parts = {
            "training": dataset.source,
            "negatives": dataset.negatives,
            "validation": self.validation,
            "step_validation": self.step_validation if step else None,
        }
        return {name: images.skipped(source) for name, source in parts.items() if source is not None}


def validation_set(config: Config, source: ImageSource, task: Task, step: int) -> StepDataset:
    """All images of a list, with the masks and labels that a model after `step` is tested on."""
    return StepDataset(
        source,
        range(len(source.names)),
        task,
        step,
        evaluation_transform(config.data.crop, *image_statistics(config)),
        dense=True,
        seed=config.seed,
        all_labels=config.all_labels,
        ignore=VOID,
    )


def choose_device(name: str) -> torch.device:
    """The device of a name, auto for a GPU if there is one; the processes of a machine take a GPU each."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.launched():
        name = f"cuda:{distributed.local_rank()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name} is not usable ({str(error).splitlines()[0]}); use cpu or auto") from error
    return device


def build_method(experiment: Experiment, step: int, old: Checkpoint | None) -> Method:
    config, task = experiment.config, experiment.task
    model = checkpoint.new_model(config, task, step, weights="none" if old else config.model.weights)
    kind = METHODS[config.method]
    if old is None:
        return FinetunePixel(model) if kind.softmax else Supervised(model)
    previous = old.model()
    model.start_from(previous)
    settings = Settings(config.losses, config.step.warmup, config.all_labels, config.model.localizer_channels)
    return kind(model, previous, settings)


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
            f"step {steps[0]} needs the checkpoint of step {steps[0] - 1}: "
            f"--start RUN/step-{steps[0] - 1}/{checkpoint.NAME}"
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
    if parts < 1 or batch < parts * distributed.processes():
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

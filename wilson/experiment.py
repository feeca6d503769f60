"""What the steps of a run share: data, task, device, and the method of each step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wilson import checkpoint
from wilson.checkpoint import Checkpoint, image_statistics
from wilson.config import Config
from wilson.data import class_sets, open_source
from wilson.data.dataset import StepDataset
from wilson.data.protocols import Task, select
from wilson.data.sources import VOID, ImageSource
from wilson.data.transforms import evaluate as evaluation_transform
from wilson.data.transforms import train as training_transform
from wilson.errors import UserError
from wilson.methods import Finetune, Method, Supervised, Wilson
from wilson.models import Localizer


@dataclass(frozen=True)
class Experiment:
    """What all steps of a run share."""

    config: Config
    task: Task
    training: ImageSource
    validation: ImageSource
    device: torch.device
    normalization: tuple[tuple[float, ...], tuple[float, ...]]

    @classmethod
    def open(cls, config: Config) -> Experiment:
        """Open the data and check the configuration against it, before anything is written."""
        data = config.data
        training = open_source(data.root, data.train_split, images=data.train_images, size=data.crop, seed=config.seed)
        validation = open_validation(config)
        task = Task.parse(config.task, training.classes)
        return cls(config, task, training, validation, choose_device(config.device), image_statistics(config))

    def steps(self) -> range:
        """The steps to train: all of the task, or the last one alone with dense labels of all classes (offline)."""
        last = len(self.task.steps) - 1
        return range(last, last + 1) if self.config.method == "offline" else range(last + 1)

    def training_set(self, step: int) -> StepDataset:
        config, sets = self.config, class_sets(self.training)
        if config.method == "offline":
            everything = replace(self.task, steps=(self.task.seen(step)[1:],))
            indices = select(sets, everything, 0, "overlap")
        else:
            indices = select(sets, self.task, step, config.protocol)
        return StepDataset(
            self.training,
            indices,
            self.task,
            step,
            training_transform(config.data.crop, *self.normalization),
            dense=step == 0 or config.method == "offline",
            seed=config.seed,
            all_labels=config.all_labels,
        )

    def validation_set(self, step: int) -> StepDataset:
        return validation_set(self.config, self.validation, self.task, step)


def validation_set(config: Config, images: ImageSource, task: Task, step: int) -> StepDataset:
    """All images of a list, with the masks and labels that a model after `step` is tested on."""
    return StepDataset(
        images,
        range(len(images.names)),
        task,
        step,
        evaluation_transform(config.data.crop, *image_statistics(config)),
        dense=True,
        seed=config.seed,
        all_labels=config.all_labels,
        ignore=VOID,
    )


def open_validation(config: Config) -> ImageSource:
    """The validation images; those of the built-in data set have a seed of their own by their split."""
    data = config.data
    return open_source(data.root, data.val_split, images=data.val_images, size=data.crop, seed=config.seed)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name} is not usable ({str(error).splitlines()[0]}); use cpu or auto") from error
    return device


def build_method(experiment: Experiment, step: int, old: Checkpoint | None) -> Method:
    config, task = experiment.config, experiment.task
    model = checkpoint.new_model(config, task, step, weights="none" if old else config.model.weights)
    if old is None:
        return Supervised(model)
    previous = old.model()
    model.start_from(previous)
    localizer = Localizer(model.backbone.channels, config.model.localizer_channels, model.classes)
    options = (config.losses, config.step.warmup, config.all_labels)
    if config.method == "wilson":
        return Wilson(model, localizer, previous, *options)
    return Finetune(model, localizer, previous.classes, *options)


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


def check_batch(step: int, images: int, batch: int) -> None:
    if images < batch:
        raise UserError(f"step {step} has {images} images, fewer than a batch of {batch}; choose a smaller batch")


def check_single_class(experiment: Experiment, steps: list[int]) -> None:
    if experiment.config.method == "offline" or experiment.config.all_labels:
        return
    for step in steps:
        if step and len(experiment.task.new(step)) == 1:
            raise UserError(
                f"step {step} of task {experiment.task.name} adds the single class "
                f"{experiment.task.class_names(step)[-1]}: image-level labels of "
                "new classes alone give no negative examples, so it cannot be learned; "
                "add classes to the step, or give labels of all classes (--all-labels)"
            )

"""What the steps of a run share: data, task, device, and the method of each step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wilson.checkpoint import Checkpoint
from wilson.config import Config
from wilson.config.masks import VOID
from wilson.data import opening
from wilson.data.dataset import StepDataset
from wilson.data.replay import Replay
from wilson.data.similarity import read_similarity
from wilson.data.sources.base import ImageSource, class_sets, fingerprint
from wilson.data.sources.views import Chosen, Joined
from wilson.data.tasks import Task, drawn, select, without_classes
from wilson.data.transforms import Normalization, TrainingCrop
from wilson.distributed import choose_device
from wilson.errors import UserError
from wilson.methods import METHODS, FinetunePixel, Method, Rasp, Settings, Supervised, TwoStage, Wilson
from wilson.models import image_statistics, new_model


@dataclass(frozen=True)
class Experiment:
    """What all steps of a run share."""

    config: Config
    task: Task
    training: ImageSource
    incremental: ImageSource  # for the steps after the first
    negatives: ImageSource | None  # given by the user
    validation: ImageSource
    step_validation: ImageSource | None
    device: torch.device
    normalization: Normalization
    similarity: Tensor | None = None  # between the names of all classes of the task, for the method rasp

    @classmethod
    def open(cls, config: Config) -> Experiment:
        """Open the data and check the configuration against it; nothing is written.

        Raises:
            UserError: the data cannot be opened, or does not fit the configuration.
        """
        check_method(config)
        training = opening.training(config)
        task = Task.parse(config.task, training.classes)
        validation = opening.validation(config, task.classes)
        step_validation = opening.step_validation(config, task.classes)
        tests = [validation] if step_validation is None else [validation, step_validation]
        return cls(
            config,
            task,
            training,
            *opening.incremental(config, training, tests),
            validation,
            step_validation,
            choose_device(config.device),
            Normalization(*image_statistics(config)),
            similarity_of(config, task),
        )

    def data(self) -> dict[str, Any]:
        """What the images are known by, wherever they lie: classes, and number, names and classes of the images."""
        parts = {
            "training images": fingerprint(self.training),
            "images of the incremental steps": fingerprint(self.incremental),
            "validation images": fingerprint(self.validation, classes=False),
        }
        if self.negatives is not None:
            parts["negatives"] = fingerprint(self.negatives, classes=False)
        if self.step_validation is not None:
            parts["validation images of the incremental steps"] = fingerprint(self.step_validation, classes=False)
        return {"classes": list(self.task.classes), **parts}

    def steps(self) -> range:
        """The steps to train: all steps of the task, or, offline, the last one alone with the masks of all classes."""
        last = len(self.task.steps) - 1
        return range(last, last + 1) if self.config.method == "offline" else range(last + 1)

    def training_set(self, step: int) -> StepDataset:
        """The training images of a step, with the labels and masks that its method may see."""
        config = self.config
        all_masks = config.method == "offline" or (step > 0 and config.method == "joint")
        source = self.training if step == 0 or all_masks else self.incremental
        if all_masks:
            everything = replace(self.task, steps=(self.task.seen(step)[1:],))
            indices = select(class_sets(source), everything, 0, "overlap")
        else:
            indices = select(class_sets(source), self.task, step, config.protocol)
            if step and config.data.shots:
                indices = drawn(class_sets(source), indices, self.task, step, config.data.shots, config.seed)
        dense = step == 0 or METHODS[config.method].pixel_supervised
        return StepDataset(
            source,
            indices,
            self.task,
            step,
            TrainingCrop(config.data.crop),
            dense=dense,
            seed=config.seed,
            all_labels=config.all_labels,
            old_masks=all_masks,
            ignore=VOID if source.crowds else None,
            negatives=None if dense else self.negatives_of(step),
            negative_share=config.data.negative_share,
            saliency=Path(config.data.saliency) if config.method == "eps" and step and config.data.saliency else None,
            prior=prior_maps(config) if step else None,
            regions=Path(config.data.regions) if step and config.data.regions else None,
            replay=self.replay() if step and config.data.replay else None,
        )

    def replay(self) -> Replay:
        """The images of the base step that later steps see again."""
        config = self.config
        images, share = config.data.replay, config.data.replay_share
        return Replay.of(self.training, self.task, config.protocol, images, config.seed, share)

    def negatives_of(self, step: int) -> ImageSource | None:
        """The negatives of a step that learns from image-level labels: those given, then those found; None for none."""
        parts = [] if self.negatives is None else [self.negatives]
        if self.config.data.find_negatives:
            held, config = class_sets(self.incremental), self.config
            if found := without_classes(held, self.task, step, config.protocol, config.all_labels):
                parts.append(Chosen(self.incremental, found))
        return Joined(parts) if len(parts) > 1 else next(iter(parts), None)

    def validation_set(self, step: int) -> StepDataset:
        """The validation images, with the masks that a model is tested on after `step`."""
        return opening.validation_set(self.config, self.validation, self.task, step)

    def step_validation_set(self, step: int) -> StepDataset | None:
        """The validation images of the incremental steps' own data set; None without one, and for the base step."""
        if step == 0 or self.step_validation is None:
            return None
        return opening.validation_set(self.config, self.step_validation, self.task, step)

    def skipped(self, step: int) -> dict[str, int]:
        """Number of images of each part that were left out because they cannot be used, for results.json."""
        dataset = self.training_set(step)
        parts = {
            "training": dataset.source,
            "negatives": None if dataset.dense else self.negatives,  # those found are of the training images
            "validation": self.validation,
            "step_validation": self.step_validation if step else None,
        }
        return {name: opening.skipped(source) for name, source in parts.items() if source is not None}

    def build_method(self, step: int, old: Checkpoint | None) -> Method:
        """Build the method and the models of a step from the checkpoint of the step before, None in a base step."""
        config, kind = self.config, METHODS[self.config.method]
        if old is None:
            model = new_model(
                config.model, self.task.class_counts(step), config.data.crop, weights=config.model.weights
            )
            return FinetunePixel(model) if kind.softmax else Supervised(model)
        previous = old.model()
        classes = len(self.task.seen(step))
        settings = Settings(
            config.losses,
            config.warmup(step),
            config.all_labels,
            config.model.localizer_channels,
            None if self.similarity is None else self.similarity[:classes, :classes],
            round(config.data.replay_share * config.step.batch) / config.step.batch if config.data.replay else 0.0,
        )
        return kind(previous.extended(len(self.task.new(step))), previous, settings)


def check_method(config: Config) -> None:
    """Raise a UserError if the method lacks what it needs."""
    epochs, warmup, kind = config.step.epochs, config.warmup(1), METHODS[config.method]
    if issubclass(kind, TwoStage) and not 0 < warmup < epochs:
        raise UserError(
            f"method {config.method} trains its localizer in the warm-up epochs and the model in those after them; "
            f"expected --step.warmup from 1 to {epochs - 1}, got {warmup}"
        )
    if config.method == "eps" and config.data.saliency is None:
        raise UserError("method eps learns from saliency maps; give a folder of them with --data.saliency")
    if issubclass(kind, Rasp) and config.data.similarity is None:
        raise UserError(
            "method rasp learns from the names of the classes; give a table of their similarity with --data.similarity "
            "(wilson prior names writes it)"
        )
    if issubclass(kind, Rasp) and config.losses.names_pooling and config.losses.pooling == "gap":
        raise UserError(
            "--losses.names-pooling weighs a softmax, which --losses.pooling gap has not; choose another one"
        )
    if config.data.replay and not issubclass(kind, Wilson):
        raise UserError(f"--data.replay works with the methods wilson and rasp, not {config.method}; leave it out")
    if config.data.regions and not (issubclass(kind, Wilson) and config.losses.merge):
        raise UserError(
            f"--data.regions works with the methods wilson and rasp and with the merge, not with {config.method}"
            f"{'' if config.losses.merge else ' and --losses.no-merge'}; leave it out"
        )
    if prior_maps(config) and config.losses.prior_use == "mix" and not config.losses.merge:
        raise UserError(
            "--losses.prior-use mix needs the merge; leave out --losses.no-merge, or use the maps as a loss"
        )
    if config.compile and kind.inner:
        raise UserError(
            f"method {config.method} compares the outputs of inner layers, which torch.compile does not show; leave "
            "--compile out"
        )


def prior_maps(config: Config) -> Path | None:
    """The folder of prior maps, if the method uses any."""
    c = config.losses
    used = issubclass(METHODS[config.method], Wilson) and (c.maps if c.prior_use == "loss" else c.prior_weight) > 0
    return Path(config.data.prior) if used and config.data.prior is not None else None


def similarity_of(config: Config, task: Task) -> Tensor | None:
    """The table of the similarity of names (C, C) in the order of the output channels; None for methods without one."""
    if config.data.similarity is None or not issubclass(METHODS[config.method], Rasp):
        return None
    return read_similarity(Path(config.data.similarity), task.class_names(len(task.steps) - 1))

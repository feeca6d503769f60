"""A run: the steps of a task one after the other, in one folder.

config.yaml        the configuration used
command.txt        the command line
results.json       IoU and mean IoU after each step
step-T/            checkpoint.pt, TensorBoard log, panels; training.pt while the step is unfinished
report.html        all of it for a person
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from wilson import checkpoint, evaluate, panels, report, train
from wilson import config as configuration
from wilson.checkpoint import Checkpoint, image_statistics
from wilson.config import Config
from wilson.data import class_sets, open_source
from wilson.data.dataset import StepDataset
from wilson.data.protocols import Task, select
from wilson.data.sources import ImageSource
from wilson.data.transforms import evaluate as evaluation_transform
from wilson.data.transforms import train as training_transform
from wilson.errors import UserError
from wilson.methods import Finetune, Method, Supervised, Wilson
from wilson.models import Localizer

CONFIG, COMMAND, RESULTS, REPORT = "config.yaml", "command.txt", "results.json", "report.html"
MAY_DIFFER = {"device", "workers", "evaluate_every"}  # on resuming: they do not change what is learned


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
        ignore=evaluate.VOID,
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
        print(f"step {step}: {summary(entry)}", flush=True)
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


def evaluate_checkpoint(
    path: Path, root: str | None, split: str | None, device: str, out: Path | None
) -> dict[str, Any]:
    """Evaluate a checkpoint on a list of images, print IoU of each class, and write the figures if asked to."""
    saved = Checkpoint(path)
    data = saved.config.data
    data = replace(data, root=root or data.root, val_split=split or data.val_split)
    config = replace(saved.config, data=data, device=device)
    images, task, step = open_validation(config), saved.task, saved.step
    if images.classes != task.classes:
        raise UserError(
            f"{data.root} has the classes {', '.join(images.classes)}, the checkpoint was trained on "
            f"{', '.join(task.classes)}; evaluate on a data set with the same classes"
        )
    where = choose_device(device)
    dataset = validation_set(config, images, task, step)
    loader = train.make_loader(dataset, config.for_step(step).batch, data.workers, where)
    names, old = task.class_names(step), len(task.seen(step - 1)) if step else 1
    entry = evaluate.scores(
        evaluate.confusion_matrix(saved.model().to(where), loader, len(names), where), names, old, step
    )
    width = max(map(len, names))
    for name, iou in entry["iou"].items():
        print(f"{name:{width}}  {percent(iou)}")
    print(summary(entry))
    if out is not None:
        out.write_text(json.dumps(entry, indent=2))
    return entry


def summary(entry: dict[str, Any]) -> str:
    miou = ", ".join(f"{group} {percent(value)}" for group, value in entry["miou"].items())
    return f"mIoU {miou}; pixel accuracy {percent(entry['pixel_accuracy'])}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def write_results(out: Path, config: Config, steps: list[dict[str, Any]]) -> None:
    only_base = config.method != "offline" and [entry["step"] for entry in steps] == [0]
    document = {
        "method": "base" if only_base else config.method,
        "task": config.task,
        "protocol": config.protocol,
        "seed": config.seed,
        "steps": steps,
    }
    temporary = out / f".{RESULTS}"
    temporary.write_text(json.dumps(document, indent=2))
    temporary.replace(out / RESULTS)


def default_folder(config: Config, suffix: str | None = None) -> Path:
    task = "".join(c if c.isalnum() or c in "-," else "_" for c in config.task)
    return timed_folder(f"{task}-{suffix or config.method}")


def timed_folder(name: str) -> Path:
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


def prepare_folder(out: Path, config: Config, *, resume: bool, overwrite: bool) -> None:
    """Make the run's folder and write the configuration, or check it against the one there."""
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; choose one")
    claim_folder(out, resume=resume, overwrite=overwrite)
    if resume and (out / CONFIG).exists():
        check_same(configuration.from_dict(yaml.safe_load((out / CONFIG).read_text())), config, out)
    configuration.save(config, out / CONFIG)
    if not (out / COMMAND).exists():
        (out / COMMAND).write_text(shlex.join(["wilson", *sys.argv[1:]]) + "\n")


def claim_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder with --out")
    if overwrite and out.exists():
        others = [p.name for p in out.iterdir() if not _ours(p)]
        if others:
            raise UserError(
                f"{out} holds files that no run wrote ({others[0]}); nothing was removed; use another --out"
            )
        shutil.rmtree(out)
    if not resume and out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; use --resume, --overwrite, or another --out")
    out.mkdir(parents=True, exist_ok=True)


def _ours(path: Path) -> bool:
    """Whether a run or a demo writes a file or folder of this name."""
    files, folders = (CONFIG, COMMAND, RESULTS, REPORT, f".{RESULTS}"), ("base", "finetune", "wilson")
    return path.name in (*files, *folders) or path.name.startswith("step-")


def check_same(saved: Config, config: Config, out: Path) -> None:
    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in values.items():
            items.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
        return items

    old, new = flat(asdict(saved)), flat(asdict(config))
    differing = [key for key in new if old[key] != new[key] and key.split(".")[-1] not in MAY_DIFFER]
    if differing:
        key = differing[0]
        raise UserError(
            f"{out} was run with {key} {old[key]!r}, not {new[key]!r}"
            + (f" (and {len(differing) - 1} more differ)" if len(differing) > 1 else "")
            + "; resume with the same options, or use another --out"
        )


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

"""Add classes to a trained model of any library, from photographs that show them: one step of WILSON on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wilson import distributed
from wilson.atomic import replacing
from wilson.data import opening
from wilson.data.dataset import StepDataset
from wilson.data.loading import batches, make_loader
from wilson.data.sources.base import ImageSource, fingerprint
from wilson.data.sources.coco import coco_splits
from wilson.data.sources.views import Chosen
from wilson.data.tasks import Task
from wilson.data.transforms import TrainingCrop, WholeImage
from wilson.distributed import choose_device
from wilson.errors import UserError
from wilson.evaluation import metrics
from wilson.evaluation.segment import segment
from wilson.grown import Grown, load_into
from wilson.methods import Settings, Wilson
from wilson.models import SegmentationModel
from wilson.models.foreign import Adapted
from wilson.printing import printable
from wilson.run_folder import RunFolder
from wilson.runs.folder import prepared
from wilson.training import seeds, state
from wilson.training.cost import Cost
from wilson.training.loop import fit

from . import held_out, pictures
from .choices import Choices, Given, choose, counted, crop_for, with_fine_features
from .first_look import first_look
from .photographs import Photographs, open_photographs
from .subject import ADDED, Subject, open_subject

VALIDATION = "val"  # name of the list in a data set with masks; COCO's begin with it


@dataclass(frozen=True)
class Plan:
    """All that is known before anything is trained."""

    subject: Subject
    photographs: Photographs
    task: Task
    choices: Choices
    validation: ImageSource | None
    validated_on: str = ""
    seen: str = ""  # what the model sees in some of the photographs now

    @property
    def step(self) -> int:
        """Number of the task's last step, which adds the classes."""
        return len(self.task.steps) - 1

    def lines(self) -> list[str]:
        """The plan in sentences."""
        subject, photographs = self.subject, self.photographs
        counts = [f"{count} of {name}" for name, count in photographs.counts.items()]
        if photographs.negatives is not None:
            counts.append(f"{photographs.others} without {'it' if len(counts) == 1 else 'them'}")
        held = len(photographs.held_out.names)
        masks = self.validation
        return [
            f"The model is {', with '.join(filter(None, [subject.origin, subject.weights]))}. It "
            f"knows {len(subject.names)} classes: {_listed(subject.names)}.",
            *_outputs(subject),
            *filter(None, [self.seen]),
            f"It learns {_listed(self.task.class_names(self.step)[len(subject.names) :])}. Photographs: "
            f"{_and(counts)}; {held or 'none'} of them {'is' if held < 2 else 'are'} held out.",
            *(
                []
                if masks is None
                else [f"IoU is measured on {counted(len(masks.names), 'image')} of {self.validated_on}."]
            ),
            *self.choices.reasons,
            *photographs.notes,
        ]


def add_classes(
    model: nn.Module | str | Path,
    classes: Mapping[str, str | Path],
    *,
    without: str | Path | None = None,
    out: str | Path,
    weights: str | Path | None = None,
    builder: str | None = None,
    validation: str | Path | None = None,
    names: Sequence[str] | None = None,
    crop: int | None = None,
    epochs: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int = 2,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    **adapting: Any,
) -> Any:
    """Add classes to a trained segmentation model from photographs that show them, without masks and old data.

    One step of WILSON (Cermelli et al., CVPR 2022) on the model, which is adapted first; see :func:`wilson.adapt`.
    The old data are not needed: the old model itself says where old classes are.

    Args:
        model: a module of any library, which stays as it is; or what names one: a checkpoint or run of wilson, a folder
            that this function wrote, `torchvision:NAME`, `smp:ARCHITECTURE?encoder_name=NAME`, a folder of
            transformers, or `FILE.py:FUNCTION`.
        classes: a folder of photographs for each new class, by its name. At least 2 photographs each, better 20.
        without: a folder of photographs that show none of them; needed for a single class, and it helps several.
        out: folder for the results; created, refused if not empty unless `resume` or `overwrite`.
        weights: state dict of a model that a name stands for; None for those that come with it.
        builder: FILE.py:FUNCTION that returns the architecture, if a folder that this function wrote needs it.
        validation: a data set with masks in the layout of VOC or COCO, of whose list `val` (COCO: val2017) the IoU is
            measured. Its classes are found by name; those that the model does not know count as background. Its images
            are left out of the photographs.
        names: names of the model's outputs in their order; None for those that it knows itself.
        crop: side of the training crops in pixels; None to choose, as for `epochs` (passes over the photographs) and
            `batch` (images per iteration).
        seed: of the new weights, the order and what is held out.
        device: auto, cpu, cuda or cuda:N.
        workers: processes that load images.
        resume: continue where the run in `out` stopped; with the same photographs.
        overwrite: remove what `out` holds first.
        dry_run: print what would be done, and why; nothing is written.
        adapting: other arguments of :func:`wilson.adapt`: classifier, features, output, background, mean, std, size.

    Returns:
        A model of the same kind as a module that was given, with the new outputs, in eval mode on the CPU; of a name,
        the path of what was written: a checkpoint of wilson, or a folder. None with `dry_run`.

    Raises:
        UserError: the model cannot get classes, or the photographs will not do.
    """
    given = Given(crop, epochs, batch, seed, device, workers)
    chosen = choose_device(device)
    with distributed.session(chosen), ExitStack() as ours:
        if distributed.anywhere(distributed.restarted()):
            resume, overwrite = True, False
        out = distributed.from_main(Path(out))
        with distributed.main_first():
            subject = open_subject(model, None if weights is None else Path(weights), names, builder, **adapting)
            plan = make_plan(subject, classes, without, None if validation is None else str(validation), given)
            if distributed.is_main():
                plan = _looked(plan)
                print("\n".join(map(printable, plan.lines())), flush=True)
            dataset = training_set(plan)
            if distributed.is_main() and not dry_run:
                config, known = plan.choices.config, _known(plan)
                ours.enter_context(prepared(out, config, known, resume=resume, overwrite=overwrite, always=True))
        if dry_run:
            return None
        folder = RunFolder(out)
        complete = distributed.from_main(resume and folder.added.is_file())
        grown = None if complete else _train(plan, dataset, folder, chosen, resume)
        path = out / distributed.from_main(_finish(folder) if distributed.is_main() else "")
    if not isinstance(model, nn.Module):
        return path
    if grown is None:  # the run was complete already
        grown = plan.subject.model.extended(len(classes))
        assert isinstance(grown, Adapted)
        load_into(grown, path)
    assert isinstance(grown, Adapted)
    grown.rename(plan.task.classes)
    grown.eval().zero_grad()
    return grown if isinstance(model, Adapted) else grown.module


def make_plan(
    subject: Subject,
    classes: Mapping[str, str | Path],
    without: str | Path | None,
    validation: str | None,
    given: Given,
) -> Plan:
    """Open the photographs and choose the settings; nothing is written."""
    new = {name.strip(): folder for name, folder in classes.items()}
    task = subject.task(list(new))
    tested = None
    if validation is not None:
        split = next((name for name in coco_splits(Path(validation)) if name.startswith(VALIDATION)), VALIDATION)
        tested = opening.by_name(opening.open_source(validation, split), task, subject.names[1:], validation)
    photographs = open_photographs(new, without, task.classes[: len(task.classes) - len(new)], given.seed, tested)
    reason = "the model takes no other size" if isinstance(subject.model, Adapted) else "what the model was trained at"
    crop, why = crop_for(subject.stride, subject.side, photographs.training, given, reason)
    subject = with_fine_features(subject, crop)
    choices = choose(
        subject.model, subject.stride, subject.parameters, (crop, why), photographs.training, photographs.negatives,
        given,
    )  # fmt: skip
    config = choices.config
    config = replace(
        config,
        task=task.name,
        data=replace(
            config.data,
            labels=", ".join(f"{name}={folder}" for name, folder in new.items()),
            negatives=None if without is None else str(without),
            mean=_three(subject.normalization.mean),
            std=_three(subject.normalization.std),
        ),
        model=replace(config.model, backbone=subject.origin),
    )
    validated_on = "" if validation is None else Path(validation).resolve().name
    return Plan(subject, photographs, task, replace(choices, config=config), tested, validated_on)


def _looked(plan: Plan) -> Plan:
    """The plan with what the model sees now."""
    subject, training = plan.subject, plan.photographs.training
    some, side = Chosen(training, pictures.watched(training)), plan.choices.config.data.crop
    return replace(plan, seen=first_look(subject.model, some, subject.normalization, side, subject.names))


def training_set(plan: Plan) -> StepDataset:
    """What the model learns from; UserError if a batch is larger than that, or too small for the processes."""
    config, photographs = plan.choices.config, plan.photographs
    dataset = _dataset(plan, photographs.training, TrainingCrop(config.data.crop), photographs.negatives)
    batch = config.for_step(ADDED).batch
    if len(dataset.sampler(batch)) < batch:
        raise UserError(
            f"{len(dataset)} photographs of the new classes are fewer than a batch of {batch} needs; choose a smaller "
            "one (--batch)"
        )
    if batch < distributed.processes():
        raise UserError(
            f"a batch of {batch} images cannot be shared out to {distributed.processes()} processes; choose a larger "
            "one (--batch) or fewer processes"
        )
    return dataset


def _train(
    plan: Plan, dataset: StepDataset, folder: RunFolder, device: torch.device, resume: bool
) -> SegmentationModel:
    """Train the step and write what came of it; added.json, which comes last, says that the step is complete."""
    config, task, subject, step = plan.choices.config, plan.task, plan.subject, plan.step
    files, settings = folder.step(ADDED), config.for_step(ADDED)
    names, old = task.class_names(step), len(subject.names)
    files.path.mkdir(parents=True, exist_ok=True)
    cost = Cost(files, device, resume)
    torch.manual_seed(seeds.of_step(config.seed, ADDED))
    grown = subject.model.extended(len(names) - old)
    told = Settings(config.losses, config.warmup(ADDED), config.all_labels, config.model.localizer_channels)
    method = Wilson(grown, subject.model, told).to(device).to(memory_format=torch.channels_last)
    held, training = plan.photographs.held_out, plan.photographs.training
    watched = _dataset(plan, Chosen(training, pictures.watched(training)), WholeImage(config.data.crop))
    seen = _dataset(plan, held, WholeImage(config.data.crop)) if held.names else None
    masks = None if plan.validation is None else opening.validation_set(config, plan.validation, task, step)

    def look(board: Any, iteration: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if seen is not None:
            loader = make_loader(seen, 1, config.data.workers, device)  # whole photographs differ in size
            found["held_out"] = held_out.measure(method, batches(loader, device, subject.normalization), names, old)
        if masks is not None:
            loader = make_loader(masks, settings.batch, config.data.workers, device)
            moved = batches(loader, device, subject.normalization)
            looks = [partial(segment, method.old), partial(segment, method.model)]
            before, after = metrics.confusion_matrices(method, moved, len(names), looks)
            found["before"], found["after"] = (metrics.scores(m, names, old, step) for m in (before, after))
            for tag, value in metrics.scalars(found["after"]).items():
                board.add_scalar(tag, value, iteration)
        if distributed.is_main():
            pictures.write_pseudo_labels(files, method, watched, subject.normalization, iteration + 1)
            for line in _said(found):
                print(line, flush=True)
        return found

    found = fit(
        method, dataset, config, settings, files, subject.normalization, look, cost, resume=resume, title="new classes"
    )
    distributed.wait()
    if distributed.is_main():
        pictures.write(folder, method, plan.photographs, subject.normalization, config.data.crop, names, device)
        entry = {**found["after"], "data": plan.validated_on} if "after" in found else _no_masks(names, step)
        written = subject.write(method.model.cpu(), config, task, entry, folder)
        _write_added(folder, plan, found, names, written)
    return method.model.cpu().to(memory_format=torch.contiguous_format)


def _finish(folder: RunFolder) -> str:
    """Remove the training state and write the report, also where a kill came between; what to load, in the folder."""
    from wilson.report import added

    state.remove(folder.step(ADDED))
    added.write(folder)
    values = json.loads(folder.added.read_text(encoding="utf-8"))
    written, builder = str(values["written"]), f" --builder {values['builder']}" if values.get("builder") else ""
    print(
        f"model: {folder.path / written}\nreport: {folder.report}\n"
        f"try it: wilson predict PHOTOGRAPH --checkpoint {folder.path / written}{builder}",
        flush=True,
    )
    return written


def _dataset(plan: Plan, source: ImageSource, transform: Any, negatives: ImageSource | None = None) -> StepDataset:
    config = plan.choices.config
    return StepDataset(
        source,
        range(len(source.names)),
        plan.task,
        plan.step,
        transform,
        dense=False,
        seed=config.seed,
        negatives=negatives,
        negative_share=config.data.negative_share,
    )


def _no_masks(names: Sequence[str], step: int) -> dict[str, Any]:
    """The entry of a step in the results of a checkpoint, where nothing could be measured for want of masks."""
    means: dict[str, float | None] = {"old": None, "new": None, "all": None}
    iou = dict.fromkeys(names)
    return {"step": step, "classes": list(names), "iou": iou, "miou": means, "pixel_accuracy": None}


def _said(found: dict[str, Any]) -> list[str]:
    lines = [held_out.summary(found["held_out"])] if "held_out" in found else []
    return lines + ([f"with masks: {metrics.summary(found['after'])}"] if "after" in found else [])


def _known(plan: Plan) -> dict[str, Any]:
    """What the photographs are known by, so that a moved folder may be resumed, and another one not."""
    found = plan.photographs
    parts = {
        "photographs of the new classes": found.training,
        "photographs without them": found.negatives,
        "photographs that are held out": found.held_out,
    }
    return {name: fingerprint(source) for name, source in parts.items() if source is not None}


def _write_added(folder: RunFolder, plan: Plan, found: dict[str, Any], names: Sequence[str], written: Path) -> None:
    document = {
        "model": plan.subject.origin,
        "written": written.relative_to(folder.path).as_posix(),
        "builder": Grown(written).builder if written.is_dir() else None,
        "classes": list(names),
        "old": len(plan.subject.names),
        "photographs": plan.photographs.counts,
        "plan": plan.lines(),
        **found,
    }
    with replacing(folder.added) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _outputs(subject: Subject) -> list[str]:
    """What is taken for granted of the outputs of a model of another library."""
    model = subject.model
    if not isinstance(model, Adapted):
        return []
    trained = f"{'softmax' if model.softmax else 'binary'} cross-entropy"
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (model.mean, model.std))
    if subject.settled:
        return [f"It was trained by {trained}, on images normalised by the mean {mean} and the deviation {std}."]
    lines = [
        f"Its output {model.background} is taken for the background (--background names another).",
        f"It is taken for trained by {trained} (--output), on images normalised by the mean {mean} and the deviation "
        f"{std} (--mean, --std).",
    ]
    if model.class_names is None:
        lines.append("It does not tell what its classes are, so they have numbers (--classes gives them names).")
    return lines


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")

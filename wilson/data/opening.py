"""Open data sets: one split of a folder, or all that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path

from wilson import distributed
from wilson.config import Config
from wilson.config.masks import BACKGROUND, VOID
from wilson.data.dataset import StepDataset
from wilson.data.names import find
from wilson.data.sources.base import ImageSource
from wilson.data.sources.coco import coco_splits, open_coco
from wilson.data.sources.labelled import Labelled, open_labelled, open_negatives
from wilson.data.sources.views import Chosen, Matched, matched, usable
from wilson.data.sources.voc import CLASSES, IMAGES, VOCFolder, classes_are_vocs
from wilson.data.tasks import Task
from wilson.data.transforms import CentreCrop
from wilson.errors import UserError
from wilson.printing import printable


def open_source(
    data: str | Path,
    split: str,
    *,
    images: int | None = None,
    size: int = 64,
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> ImageSource:
    """Open one split of a data set.

    Args:
        data: "synthetic" for the built-in data set, else a folder in the layout of COCO or VOC.
        split: name of the split: of a list in a VOC folder; as in "train2017" of a COCO folder; "base", "step", "train"
            or "val" of the built-in data set.
        images: number of images in the split of the built-in data set, None for the number that the demo uses; ignored
            for a folder.
        size: height and width in pixels of the built-in data set's images; ignored for a folder.
        seed: of the built-in data set; ignored for a folder.
        classes: class names by mask id, background first, that masks and labels are translated to; None keeps the data
            set's own.

    Returns:
        The images, masks and classes of the split.

    Raises:
        UserError: there is no such folder or split, its files do not fit together, or it has a class that `classes`
            lacks.
    """
    if data == "synthetic":
        from wilson.data.sources.synthetic import Synthetic

        return matched(Synthetic(split, images, size=size, seed=seed), classes, data)
    root = Path(data)
    return matched(open_coco(root, split) if coco_splits(root) else VOCFolder(root, split), classes, data)


def training(config: Config) -> ImageSource:
    """Open the images of the base step; later steps use them, too, unless they have their own."""
    for root in (config.data.root, config.data.step_root):
        if root not in (None, "synthetic") and classes_are_vocs(Path(root)):
            _say(f"{root}: the classes are VOC's 20, because there is no {CLASSES}")
    return _open(config, config.data.root, config.data.train_split, config.data.train_images)


def incremental(
    config: Config, base: ImageSource, tests: Sequence[ImageSource]
) -> tuple[ImageSource, ImageSource | None]:
    """Open the images of the incremental steps, and negatives: images that hold none of these steps' classes.

    The images are those of `data.labels`, else those of `data.step_root`, else the base step's. The negatives are the
    images of `data.negatives`, and those of `data.labels` without a class. Images of `data.labels` and `data.negatives`
    that are tested on are left out.

    Args:
        config: of the run.
        base: the images of the base step.
        tests: the images that models are tested on.

    Returns:
        The images, and the negatives (None without any).

    Raises:
        UserError: the data cannot be opened, has a class that the base step's data lacks, or is all tested on.
    """
    data, negatives, source = config.data, [], base
    if data.labels is not None:
        labelled = open_labelled(data.labels, base.classes, [Path(data.root, IMAGES)])
        held, rest = _untested(labelled, data.labels, tests).divided()
        source = _usable(config, held, data.labels)
        if rest.names:
            _say(f"{data.labels}: {len(rest.names)} images hold no class and are used as negatives")
            negatives.append((rest, data.labels))
    elif data.step_root is not None:
        source = _open(config, data.step_root, data.step_train_split, data.train_images, base.classes)
    if data.negatives is not None:
        found = _untested(open_negatives(data.negatives, base.classes), data.negatives, tests)
        negatives.append((found, data.negatives))
    if not negatives:
        return source, None
    parts, places = zip(*negatives, strict=True)
    return source, _usable(config, reduce(add, parts), " and ".join(places))


def validation(config: Config, classes: Sequence[str] | None = None) -> ImageSource:
    """Open the validation images, with these classes; the built-in data set has another split of the same seed."""
    return _open(config, config.data.root, config.data.val_split, config.data.val_images, classes)


def by_name(source: ImageSource, task: Task, known: Sequence[str], where: object) -> ImageSource:
    """A data set with masks for a model that was not trained on it: its classes by name, unknown ones as background.

    Args:
        source: the images.
        task: of the model.
        known: classes of the model, of which the data set must have one.
        where: folder of the source, for errors.

    Raises:
        UserError: the data set has none of the known classes, so the figures would mean nothing.
    """
    if not any(find(name, known) is not None for name in source.classes[1:]):
        raise UserError(
            f"{where}: none of its classes ({_few(source.classes[1:])}) is among those that the model knows "
            f"({_few(known)}); name the model's outputs as the data set does (--classes of wilson add), or give another"
            " data set"
        )
    return Matched(source, task.classes, where, others=BACKGROUND)


def validation_set(config: Config, source: ImageSource, task: Task, step: int) -> StepDataset:
    """All images of a source, with the masks and labels that a model is tested on after `step`."""
    return StepDataset(
        source,
        range(len(source.names)),
        task,
        step,
        CentreCrop(config.data.tested_crop),
        dense=True,
        seed=config.seed,
        all_labels=config.all_labels,
        ignore=VOID,
    )


def step_validation(config: Config, classes: Sequence[str]) -> ImageSource | None:
    """Open the validation images of the incremental steps' own data set; None if they have none."""
    data = config.data
    if data.step_root is None:
        return None
    return _open(config, data.step_root, data.step_val_split, data.val_images, classes)


def skipped(source: ImageSource | None) -> int:
    """Number of images that were left out because they cannot be used."""
    return source.left_out if isinstance(source, Chosen) else 0


def _open(config: Config, root: str, split: str, images: int, classes: Sequence[str] | None = None) -> ImageSource:
    source = open_source(root, split, images=images, size=config.data.crop, seed=config.seed, classes=classes)
    return _usable(config, source, f"{root} ({split})")


def _usable(config: Config, source: ImageSource, where: object) -> ImageSource:
    if not config.data.skip_corrupt:
        return source
    left, text = usable(source, where)
    if text:
        _say(text)
    return left


def _untested(source: Labelled, where: str, tests: Sequence[ImageSource]) -> Labelled:
    tested = {file.resolve() for test in tests for index in range(len(test.names)) for file in test.files(index)}
    left = source.without(tested)
    if not left.names:
        raise UserError(f"{where}: all {len(source.names)} images are in the validation list; give others to train on")
    if count := len(source.names) - len(left.names):
        _say(f"{where}: {count} of {len(source.names)} images are left out, as the validation list holds them")
    return left


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _say(text: str) -> None:
    if distributed.is_main():
        print(printable(text), flush=True)

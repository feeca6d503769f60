"""Opens the images that a configuration names: of the base step, of the steps after it, and for validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wilson import distributed
from wilson.config import Config
from wilson.data import ImageSource, open_source
from wilson.data.labelled import open_labelled, open_negatives
from wilson.data.views import Chosen, usable
from wilson.data.voc import IMAGES


def training(config: Config) -> ImageSource:
    """The images of the base step, and of the steps after it unless they have their own."""
    return _open(config, config.data.root, config.data.train_split, config.data.train_images)


def incremental(config: Config, base: ImageSource) -> ImageSource:
    """The images of the steps after the base step: with labels of their own, of their own data set, or the base's."""
    data = config.data
    if data.labels is not None:
        return _usable(config, open_labelled(data.labels, base.classes, [Path(data.root, IMAGES)]), data.labels)
    if data.step_root is not None:
        return _open(config, data.step_root, data.step_train_split, data.train_images, base.classes)
    return base


def negatives(config: Config, classes: Sequence[str]) -> ImageSource | None:
    """Images that hold no class of an incremental step."""
    folder = config.data.negatives
    return None if folder is None else _usable(config, open_negatives(folder, classes), folder)


def validation(config: Config, classes: Sequence[str] | None = None) -> ImageSource:
    """The validation images, seen with these classes; those of the built-in data set have a seed of their own."""
    return _open(config, config.data.root, config.data.val_split, config.data.val_images, classes)


def step_validation(config: Config, classes: Sequence[str]) -> ImageSource | None:
    """The validation images of the incremental steps' own data set, if they have one."""
    data = config.data
    if data.step_root is None:
        return None
    return _open(config, data.step_root, data.step_val_split, data.val_images, classes)


def skipped(source: ImageSource | None) -> int:
    """How many images were left out because they cannot be used."""
    return source.left_out if isinstance(source, Chosen) else 0


def _open(config: Config, root: str, split: str, images: int, classes: Sequence[str] | None = None) -> ImageSource:
    source = open_source(root, split, images=images, size=config.data.crop, seed=config.seed, classes=classes)
    return _usable(config, source, f"{root} ({split})")


def _usable(config: Config, source: ImageSource, where: object) -> ImageSource:
    if not config.data.skip_corrupt:
        return source
    left, text = usable(source, where)
    if text and distributed.is_main():
        print(text, flush=True)
    return left

"""Opens the images that a configuration names: of the base step, of the steps after it, and for validation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path

from wilson import distributed
from wilson.config import Config
from wilson.data import ImageSource, open_source
from wilson.data.labelled import Labelled, open_labelled, open_negatives
from wilson.data.views import Chosen, usable
from wilson.data.voc import IMAGES
from wilson.errors import UserError


def training(config: Config) -> ImageSource:
    """The images of the base step, and of the steps after it unless they have their own."""
    return _open(config, config.data.root, config.data.train_split, config.data.train_images)


def incremental(
    config: Config, base: ImageSource, tests: Sequence[ImageSource]
) -> tuple[ImageSource, ImageSource | None]:
    """The images of the steps after the base step, and negatives, which hold no class of such a step.

    The first are those with labels of their own, of their own data set, or the base's; negatives are those of their
    folder and those without a class among the labels. Of both, the images that are tested on are left out.
    """
    data, negatives, source = config.data, [], base
    if data.labels is not None:
        labelled = open_labelled(data.labels, base.classes, [Path(data.root, IMAGES)])
        held, rest = _untested(labelled, data.labels, tests).divided()
        source = _usable(config, held, data.labels)
        if rest.names:
            _say(f"{data.labels}: {len(rest.names)} images hold no class and are taken as negatives")
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
    """The validation images, seen with these classes; those of the built-in data set are another split of one seed."""
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


def _say(text: str) -> None:
    if distributed.is_main():
        print(text, flush=True)

"""Example pictures of a step: a run writes them, the report shows them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from wilson.pictures import overlay, palette

INDEX = "panels.json"


@dataclass(frozen=True)
class Entry:
    """What to show of one image. Labels are output channels, 255 where there is none.

    Args:
        name: the image's name in the data set.
        image: uint8 (H, W, 3), RGB.
        prediction: integers (H, W).
        truth: integers (H, W).
        localizer: probabilities (C, h, w), or None for a step without a localizer.
        pseudo_label: integers (h, w), or None for a step without pseudo-labels.
    """

    name: str
    image: np.ndarray
    prediction: np.ndarray
    truth: np.ndarray
    localizer: np.ndarray | None = None
    pseudo_label: np.ndarray | None = None


@dataclass(frozen=True)
class Panel:
    """The files of one entry; None where there was nothing to show or the file is gone."""

    name: str
    image: Path | None
    localizer: Path | None
    pseudo_label: Path | None
    prediction: Path | None
    truth: Path | None


@dataclass(frozen=True)
class Panels:
    """The example pictures of one step."""

    classes: list[str]
    panels: list[Panel]


def write(folder: Path, class_names: Sequence[str], ids: Sequence[int], entries: Sequence[Entry]) -> None:
    """Write the pictures of some images and the index that the report reads.

    Classes have the colours of `palette.distinct` by output channel, so a class keeps its colour over the steps and
    runs of a task, whatever its mask id. Localizer and pseudo-labels keep the size of the feature map.

    Args:
        folder: created if missing; files of the same names are replaced, the index last.
        class_names: names in channel order, background first.
        ids: mask ids in channel order.
        entries: what to show, a dozen images or so.
    """
    colours = palette.distinct(len(class_names))

    def mask(labels: np.ndarray) -> Image.Image:
        return palette.apply(labels, colours)

    folder.mkdir(parents=True, exist_ok=True)
    index = []
    for number, entry in enumerate(entries):
        pictures = {
            "image": Image.fromarray(entry.image),
            "localizer": None if entry.localizer is None else overlay.soft(entry.localizer, colours=colours),
            "pseudo_label": None if entry.pseudo_label is None else mask(entry.pseudo_label),
            "prediction": mask(entry.prediction),
            "truth": mask(entry.truth),
        }
        files: dict[str, str | None] = {"name": entry.name}
        for kind, picture in pictures.items():
            file = None if picture is None else f"{number:02d}-{kind}.{'jpg' if kind == 'image' else 'png'}"
            files[kind] = file
            if picture is not None and file is not None:
                picture.save(folder / file, quality=92)  # of the JPEG; PNG has no quality
        index.append(files)
    document = {"classes": list(class_names), "ids": [int(i) for i in ids], "panels": index}
    (folder / INDEX).write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


def read(folder: Path) -> Panels | None:
    """Find the pictures that `write` left in a folder; None if there is no readable index."""
    try:
        document = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return Panels(list(document["classes"]), [_panel(folder, files) for files in document["panels"]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _panel(folder: Path, files: dict[str, str | None]) -> Panel:
    def path(kind: str) -> Path | None:
        name = files.get(kind)
        return folder / name if name is not None and (folder / name).is_file() else None

    return Panel(
        name=str(files["name"]),
        image=path("image"),
        localizer=path("localizer"),
        pseudo_label=path("pseudo_label"),
        prediction=path("prediction"),
        truth=path("truth"),
    )

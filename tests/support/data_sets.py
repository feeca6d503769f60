"""Tiny data sets for the tests of wilson.data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

CLASSES = ("background", "ant", "bee", "cat", "dog", "eel")  # mask ids 0 to 5


def mask_of(*ids: int, size: tuple[int, int] = (8, 12)) -> np.ndarray:
    """A mask (H, W) with a stripe of rows for each id."""
    rows = np.array_split(np.arange(size[0]), len(ids))
    mask = np.zeros(size, np.uint8)
    for class_id, stripe in zip(ids, rows, strict=True):
        mask[stripe] = class_id
    return mask


def write_image(path: Path, pixels: ArrayLike) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def write_text(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_voc(
    root: Path,
    masks: Mapping[str, np.ndarray],
    *,
    lists: Mapping[str, Sequence[str]] | None = None,
    classes: Sequence[str] | None = CLASSES,
    with_masks: bool = True,
) -> Path:
    """Writes images of random pixels and the masks by name; by default one list, train, of all of them in order."""
    rng = np.random.default_rng(0)
    for name, mask in masks.items():
        write_image(root / "JPEGImages" / f"{name}.jpg", rng.integers(0, 256, (*mask.shape, 3)))
        if with_masks:
            write_image(root / "SegmentationClass" / f"{name}.png", mask)
    for split, lines in (lists or {"train": list(masks)}).items():
        write_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", lines)
    if classes is not None:
        write_text(root / "classes.txt", classes)
    return root


def write_labels(root: Path, lines: Sequence[str]) -> None:
    write_text(root / "ImageSets" / "Segmentation" / "image_labels.txt", lines)


def files_under(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if path.is_file()}


def write_stuff_maps(
    root: Path, split: str, masks: Mapping[str, np.ndarray], *, images: str = "images", maps: str = "annotations"
) -> Path:
    """Writes images of random pixels and pixel maps of these values, as COCO-Stuff lays them out."""
    rng = np.random.default_rng(0)
    for name, mask in masks.items():
        write_image(root / images / split / f"{name}.jpg", rng.integers(0, 256, (*mask.shape, 3)))
        write_image(root / maps / split / f"{name}.png", mask)
    return root


# Category ids with gaps, as COCO has them.
CATEGORIES = {7: "train", 1: "person", 90: "toothbrush"}


def box(x: int, y: int, width: int, height: int) -> list[list[float]]:
    """A rectangle as COCO's list of polygons."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def write_instances(
    root: Path,
    split: str,
    images: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    size: tuple[int, int] = (8, 12),
    categories: Mapping[int, str] = CATEGORIES,
) -> Path:
    """Writes images of random pixels by file name, and their annotations as COCO's JSON of instances."""
    rng = np.random.default_rng(0)
    height, width = size
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, instances) in enumerate(images.items(), 101):
        write_image(root / split / name, rng.integers(0, 256, (height, width, 3)))
        entries.append({"id": number, "file_name": name, "height": height, "width": width})
        for instance in instances:
            annotations.append({"iscrowd": 0, **instance, "id": len(annotations) + 1, "image_id": number})
    document = {
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": category, "name": name} for category, name in categories.items()],
    }
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    return root

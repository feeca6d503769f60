"""Data sets, protocols (which classes and images belong to which step) and transforms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wilson.data.sources import ImageSource, class_sets

__all__ = ["ImageSource", "class_sets", "open_source"]


def open_source(
    data: str | Path,
    split: str,
    *,
    images: int | None = None,
    size: int = 64,
    seed: int = 0,
    classes: Sequence[str] | None = None,
) -> ImageSource:
    """Opens one split of a data set.

    Args:
        data: "synthetic" for the built-in data set, else a folder in the layout of COCO or of VOC.
        split: name of the split: of the lists in a VOC folder, as in train2017 of a COCO folder, or "base", "step",
            "train", "val" for the built-in one.
        images: number of images of the built-in data set's split, by default of a size for the demo; not used for a
            folder.
        size: height and width in pixels of the built-in data set's images; not used for a folder.
        seed: seed of the built-in data set; not used for a folder.
        classes: class names by mask id that the images are to be seen with; None for the data set's own.

    Returns:
        The images, masks and classes of the split.

    Raises:
        UserError: no such folder or split, its files do not fit together, or it has a class that `classes` lacks.
    """
    from wilson.data.views import matched

    if data == "synthetic":
        from wilson.data.synthetic import Synthetic

        return matched(Synthetic(split, images, size=size, seed=seed), classes, data)
    from wilson.data.coco import coco_splits, open_coco
    from wilson.data.voc import VOCFolder

    root = Path(data)
    return matched(open_coco(root, split) if coco_splits(root) else VOCFolder(root, split), classes, data)

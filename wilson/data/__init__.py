"""Data sets, protocols (which classes and images belong to which step) and transforms."""

from __future__ import annotations

from pathlib import Path

from wilson.data.sources import ImageSource, class_sets

__all__ = ["ImageSource", "class_sets", "open_source"]


def open_source(
    data: str | Path, split: str, *, images: int | None = None, size: int = 64, seed: int = 0
) -> ImageSource:
    """Opens one split of a data set.

    Args:
        data: "synthetic" for the built-in data set, else a folder in the VOC layout.
        split: name of the split: of the lists in the folder, or "base", "step", "train", "val" for the built-in one.
        images: number of images of the built-in data set's split, by default of a size for the demo; not used for a
            folder.
        size: height and width in pixels of the built-in data set's images; not used for a folder.
        seed: seed of the built-in data set; not used for a folder.

    Returns:
        The images, masks and classes of the split.

    Raises:
        UserError: no such folder or split, or its files do not fit together.
    """
    if data == "synthetic":
        from wilson.data.synthetic import Synthetic

        return Synthetic(split, images, size=size, seed=seed)
    from wilson.data.voc import VOCFolder

    return VOCFolder(data, split)

"""Writes the built-in images as people keep photographs: a folder for each new class, and one without any.

`python -m examples.bring_your_own.photographs data/textures zigzag` makes `zigzag/`, `without/`, and `masked/`, images
with masks in VOC's layout to measure on. Several classes may be named; an image that shows two lies in both folders.
The masks leave out new textures that are not named, as neither the model nor its user has heard of them.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from wilson.config.masks import VOID
from wilson.data.export import export
from wilson.data.sources.synthetic import NEW_CLASSES, Synthetic
from wilson.data.sources.views import View


class LeftOut(View):
    """The images of a source, some of whose classes count as void in the masks."""

    def __init__(self, source: Synthetic, names: set[str]) -> None:
        self.source, self.classes, self.names, self.crowds = source, source.classes, source.names, source.crowds
        self._ids = [source.classes.index(name) for name in names]

    def mask(self, index: int) -> Image.Image:
        mask = np.array(self.source.mask(index))
        mask[np.isin(mask, self._ids)] = VOID
        return Image.fromarray(mask)

    def class_ids(self, index: int) -> frozenset[int]:
        return self.source.class_ids(index) - set(self._ids)


def main(folder: str, *classes: str, count: int | None = None) -> None:
    """Write the folders of some classes, all new ones by default."""
    out, source, chosen = Path(folder), Synthetic("step", count), classes or tuple(NEW_CLASSES)
    for index, name in enumerate(source.names):
        shown = [source.classes[i] for i in source.class_ids(index) if source.classes[i] in chosen]
        for place in shown or ["without"]:
            (out / place).mkdir(parents=True, exist_ok=True)
            source.image(index).save(out / place / f"{name}.png")
    export({"val": LeftOut(Synthetic("val", count), set(NEW_CLASSES) - set(chosen))}, out / "masked")


if __name__ == "__main__":
    main(*sys.argv[1:])

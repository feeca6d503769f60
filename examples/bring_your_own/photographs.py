"""Writes the built-in images as people keep photographs: a folder for each new class, and one without any.

`python -m examples.bring_your_own.photographs data/textures zigzag` makes `zigzag/`, `without/`, and `masked/`, images
with masks in VOC's layout to measure on. Several classes may be named; an image that shows two lies in both folders.
"""

import sys
from pathlib import Path

from wilson.data.export import export
from wilson.data.sources.synthetic import NEW_CLASSES, Synthetic


def main(folder: str, *classes: str, count: int | None = None) -> None:
    """Write the folders of some classes, all new ones by default."""
    out, source = Path(folder), Synthetic("step", count)
    for index, name in enumerate(source.names):
        shown = [source.classes[i] for i in source.class_ids(index) if source.classes[i] in (classes or NEW_CLASSES)]
        for place in shown or ["without"]:
            (out / place).mkdir(parents=True, exist_ok=True)
            source.image(index).save(out / place / f"{name}.png")
    export({"val": Synthetic("val", count)}, out / "masked")


if __name__ == "__main__":
    main(*sys.argv[1:])

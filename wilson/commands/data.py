"""Commands about data sets: data check, data export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, subcommand


@dataclass(frozen=True)
class _DataCheck:
    """Read a data set and report what is there and what is wrong; exit status 1 on errors."""

    root: Positional[Path]
    """Folder in the VOC layout."""
    task: str | None = None
    """A task whose split sizes are counted."""
    protocol: Literal["disjoint", "overlap"] = "overlap"
    """Which images belong to a step."""

    def __call__(self) -> int:
        from wilson.data.check import check, render

        result = check(self.root, self.task, self.protocol)
        print(render(result))
        return 1 if result.errors else 0


@dataclass(frozen=True)
class _DataExport:
    """Write the built-in data set in the VOC layout."""

    out: Path = Path("data/synthetic")
    """Folder to write; a folder that is not empty is refused."""
    train_images: int = 2100
    """Images of the training split."""
    val_images: int = 300
    """Images of the validation split."""
    size: int = 64
    """Height and width in pixels."""
    seed: int = 0
    """Seed of the images."""

    def __call__(self) -> int:
        from wilson.data.export import export
        from wilson.data.synthetic import Synthetic

        counts = {"train": self.train_images, "val": self.val_images}
        export({split: Synthetic(split, n, self.size, self.seed) for split, n in counts.items()}, self.out)
        print(self.out)
        return 0


DataCheck = Annotated[_DataCheck, subcommand("check")]
DataExport = Annotated[_DataExport, subcommand("export")]

"""Commands about data sets: data check, data export, data bench."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from wilson.commands.training import Options


@dataclass(frozen=True)
class _DataCheck:
    """Read a data set and report what is there and what is wrong; exit status 1 on errors."""

    root: Positional[Path]
    """Folder in the layout of VOC or COCO."""
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
    without: str | None = None
    """Leave out the images that hold this class (name or id): negatives of a step that adds it."""

    def __call__(self) -> int:
        from wilson.data import ImageSource
        from wilson.data.export import export
        from wilson.data.synthetic import Synthetic
        from wilson.data.views import without

        counts = {"train": self.train_images, "val": self.val_images}
        sources: dict[str, ImageSource] = {}
        for split, images in counts.items():
            source = Synthetic(split, images, self.size, self.seed)
            sources[split] = source if self.without is None else without(source, self.without)
        export(sources, self.out)
        print(self.out)
        return 0


@dataclass(frozen=True)
class DataBench:
    """Print how many training images are loaded per second, by 0, 1, 2 ... workers: read, decoded, cut, batched."""

    config: Options
    number: Annotated[int, arg(name="step")] = 0
    """Step whose images are loaded, from 0."""
    seconds: float = 5.0
    """How long to load with each number of workers, after the first batch of each."""
    need: float | None = None
    """Images per second that the GPUs train: how many workers keep them fed is printed, too."""

    def __call__(self) -> int:
        from wilson.bench import bench

        bench(self.config, self.number, self.seconds, self.need)
        return 0


DataCheck = Annotated[_DataCheck, subcommand("check")]
DataExport = Annotated[_DataExport, subcommand("export")]

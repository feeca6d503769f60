"""The command data export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataExport:
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
    """Leave out the images that hold this class (name or id); the others are negatives for a step that adds it."""

    def __call__(self) -> int:
        from wilson.data.export import export
        from wilson.data.sources.base import ImageSource
        from wilson.data.sources.synthetic import Synthetic
        from wilson.data.sources.views import without

        counts = {"train": self.train_images, "val": self.val_images}
        sources: dict[str, ImageSource] = {}
        for split, images in counts.items():
            source = Synthetic(split, images, self.size, self.seed)
            sources[split] = source if self.without is None else without(source, self.without)
        export(sources, self.out)
        print(self.out)
        return 0

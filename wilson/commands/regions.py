"""The command regions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wilson.errors import UserError


@dataclass(frozen=True)
class Regions:
    """Make regions for --data.regions: superpixels of scikit-image."""

    out: Path
    """Folder of the regions, a NAME.png of 16 bits for each image; what is there already is kept."""
    root: str = "data/voc"
    """Folder in the layout of VOC or COCO, or synthetic for the built-in data set."""
    split: str = "train_aug"
    """Name of the list of images (COCO: train2017, built-in data set: train)."""
    labels: str | None = None
    """Images with labels, as in --data.labels, instead of those of the list."""
    count: int = 100
    """About how many superpixels an image gets (1 to 65535)."""
    compactness: float = 10.0
    """Of superpixels: how much near places count against like colours (above 0)."""

    def __call__(self) -> int:
        from wilson.priors.maps import open_images
        from wilson.priors.superpixels import fill

        if not 1 <= self.count <= 65535:
            raise UserError(f"--count: expected 1 to 65535 superpixels, got {self.count}")
        if not 0 < self.compactness < float("inf"):
            raise UserError(f"--compactness: expected a number above 0, got {self.compactness}")
        fill(self.out, open_images(self.root, self.split, self.labels), self.count, self.compactness)
        print(self.out)
        return 0

"""The command saliency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Saliency:
    """Make saliency maps for the method eps with a network in an ONNX file, such as u2netp.onnx."""

    network: Path
    """ONNX file from normalised images (1, 3, S, S) to maps (1, 1, S, S)."""
    out: Path
    """Folder of the maps, a grey NAME.png for each image; what is there already is kept."""
    root: str = "data/voc"
    """Folder in the layout of VOC or COCO, or synthetic for the built-in data set."""
    split: str = "train_aug"
    """Name of the list of images (COCO: train2017, built-in data set: train)."""
    labels: str | None = None
    """Images with labels, as in --data.labels, instead of those of the list."""

    def __call__(self) -> int:
        from wilson.priors.maps import open_images
        from wilson.priors.salient import Salient, fill

        look = Salient(self.network)
        fill(self.out, open_images(self.root, self.split, self.labels), look)
        print(self.out)
        return 0

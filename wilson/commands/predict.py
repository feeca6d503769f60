"""The command predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Predict:
    """Segment images: write a palette mask and a coloured overlay of each."""

    images: Positional[tuple[Path, ...]]
    """Image files, folders of them, or patterns in quotes, as in 'photos/**/*.jpg'."""
    checkpoint: Path
    """checkpoint.pt of a step, the folder of a run, of wilson save or of wilson add, or an exported model (.onnx,
    .pt2). A .pt2 file is a program: trust its source."""
    out: Path | None = None
    """Folder for the masks (NAME.png) and overlays (NAME_overlay.jpg); runs/TIME-predict by default. Images of one name
    keep their folders."""
    probabilities: bool = False
    """Write NAME_probabilities.npz, too: the probability of each class at each pixel, float16 (C, H, W), with the
    classes and their ids. It takes 2 C bytes for each pixel before compression."""
    batch: int = 8
    """Number of images of one size that are computed together."""
    overwrite: bool = False
    """Write into a folder that is not empty."""
    builder: str | None = None
    """FILE.py:FUNCTION that returns the architecture, for a model that was built by one; it is imported and called."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __call__(self) -> int:
        from wilson.distributed import choose_device
        from wilson.inference.predict import predict
        from wilson.runs.folder import timed_folder

        out = self.out or timed_folder("predict")
        device = choose_device(self.device)
        predict(
            self.images,
            self.checkpoint,
            out,
            device,
            batch=self.batch,
            overwrite=self.overwrite,
            probabilities=self.probabilities,
            builder=self.builder,
        )
        return 0

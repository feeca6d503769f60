"""Commands that use what was trained: evaluate, predict, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Evaluate:
    """Print IoU of a checkpoint on the validation images."""

    checkpoint: Positional[Path]
    """checkpoint.pt of a step."""
    root: str | None = None
    """Data set; by default the one it was trained on."""
    split: str | None = None
    """Name of the list of images; by default the validation list of the run."""
    whole: bool = False
    """Whole images, the short side resized to the training crop, each compared with its mask at the mask's own size;
    otherwise centre crops, as published."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which each image is seen, such as 0.5 0.75 1 1.25 1.5; the probabilities (softmax) are averaged."""
    flip: bool = False
    """See each image in a mirror, too, and average."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """File for the figures, as in results.json."""
    confusion: Path | None = None
    """PNG file for the confusion matrix."""

    def __call__(self) -> int:
        from wilson.evaluate import evaluate_checkpoint

        evaluate_checkpoint(
            self.checkpoint,
            self.root,
            self.split,
            self.device,
            self.out,
            whole=self.whole,
            scales=self.scales,
            flip=self.flip,
            picture=self.confusion,
        )
        return 0


@dataclass(frozen=True)
class Predict:
    """Segment images: a palette mask and a coloured overlay of each."""

    images: Positional[tuple[Path, ...]]
    """Image files, folders of them, or patterns in quotes, as in 'photos/**/*.jpg'."""
    checkpoint: Path
    """checkpoint.pt of a step, or an exported model: .onnx, or .pt2, which is a program: trust where it is from."""
    out: Path | None = None
    """Folder for the masks (NAME.png) and overlays (NAME_overlay.jpg); runs/TIME-predict by default."""
    batch: int = 8
    """How many images of one size are computed at once."""
    overwrite: bool = False
    """Write into a folder that is not empty."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __call__(self) -> int:
        from wilson.experiment import choose_device
        from wilson.folder import timed_folder
        from wilson.predict import predict

        out = self.out or timed_folder("predict")
        device = choose_device(self.device)
        predict(self.images, self.checkpoint, out, device, batch=self.batch, overwrite=self.overwrite)
        return 0


@dataclass(frozen=True)
class Report:
    """Compare runs in one self-contained HTML file."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs."""
    out: Path = Path("report.html")
    """The file to write."""

    def __call__(self) -> int:
        from wilson import report

        print(report.write(self.runs, self.out))
        return 0

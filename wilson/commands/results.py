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
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """File for the figures, as in results.json."""

    def __call__(self) -> int:
        from wilson.evaluate import evaluate_checkpoint

        evaluate_checkpoint(self.checkpoint, self.root, self.split, self.device, self.out)
        return 0


@dataclass(frozen=True)
class Predict:
    """Segment images: a palette mask and a coloured overlay of each."""

    images: Positional[tuple[Path, ...]]
    """Image files."""
    checkpoint: Path
    """checkpoint.pt of a step."""
    out: Path | None = None
    """Folder for the masks (NAME.png) and overlays (NAME_overlay.jpg); runs/TIME-predict by default."""
    overwrite: bool = False
    """Write into a folder that is not empty."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __call__(self) -> int:
        from wilson.experiment import choose_device
        from wilson.folder import timed_folder
        from wilson.predict import predict

        out = self.out or timed_folder("predict")
        predict(self.images, self.checkpoint, out, choose_device(self.device), overwrite=self.overwrite)
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

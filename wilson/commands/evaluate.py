"""The command evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Evaluate:
    """Print the IoU of a checkpoint's classes on the validation images."""

    checkpoint: Positional[Path]
    """checkpoint.pt of a step, or the folder of a run, of wilson save or of wilson add."""
    root: str | None = None
    """Data set; by default the one that the model was trained on."""
    split: str | None = None
    """Name of the list of images; by default the validation list of the run."""
    whole: bool = False
    """Evaluate whole images: the model sees each with its short side resized to the tested crop, and the result is
    compared with the mask at the mask's own size. Otherwise centre crops, as published."""
    scales: tuple[float, ...] = (1.0,)
    """Relative sizes at which the model sees each image, such as 0.5 0.75 1 1.25 1.5; the probabilities (softmax) are
    averaged."""
    flip: bool = False
    """Show the model the mirror image, too, and average."""
    window: int | None = None
    """Evaluate a second time with a window of this side in pixels, such as the training crop's, that slides over each
    view; the logits of windows that overlap are averaged. Goes with whole images larger than the crop, and larger
    scales."""
    window_stride: int | None = None
    """Pixels from one window to the next; by default half the window."""
    builder: str | None = None
    """FILE.py:FUNCTION that returns the architecture, for a model that was built by one; it is imported and called."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """File for the figures, as in results.json."""
    confusion: Path | None = None
    """PNG file for the confusion matrix."""

    def __call__(self) -> int:
        from wilson.evaluation.evaluate import evaluate_checkpoint

        evaluate_checkpoint(
            self.checkpoint,
            self.root,
            self.split,
            self.device,
            self.out,
            whole=self.whole,
            scales=self.scales,
            flip=self.flip,
            window=self.window,
            window_stride=self.window_stride,
            picture=self.confusion,
            builder=self.builder,
        )
        return 0

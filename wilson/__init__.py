"""Weakly incremental learning for semantic segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from wilson.predict import Predictor

__version__ = "0.1.0"


def load(path: str | Path, device: str = "auto") -> Predictor:
    """A trained model, ready to segment images: `wilson.load("checkpoint.pt").predict("photo.jpg")`.

    Args:
        path: the checkpoint of a step, or what `wilson export` wrote (.pt2, .onnx). Nothing in a checkpoint or .onnx
            file is executed; a .pt2 file is a program, to be loaded only if you trust where it is from.
        device: auto (the first GPU if there is one), cpu, cuda or cuda:N.

    Returns:
        A :class:`wilson.predict.Predictor`. Its `predict` takes a file, a PIL image or an array, uint8 (H, W, 3), and
        gives the mask id of each pixel, uint8 (H, W); `classes` names them and `ids` are their ids.

    Raises:
        UserError: the file is missing, damaged or something else, or the device is not usable.
    """
    from pathlib import Path

    from wilson.experiment import choose_device
    from wilson.predict import Predictor

    return Predictor.load(Path(path), choose_device(device))

"""Weakly incremental learning for semantic segmentation.

`wilson.ops` holds the fused ops. `wilson.run(config, folder)` trains the run that a `wilson.Config` describes.
`wilson.load(path)` loads a trained model as a `wilson.Predictor`. `wilson.add_classes(model, ...)` adds classes to a
model of any library, and `wilson.adapt(model)` makes such a model one that the methods here can train.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from wilson.adding import add_classes as add_classes
    from wilson.config import Config as Config
    from wilson.hub import HubModel as HubModel
    from wilson.inference.predict import Predictor as Predictor
    from wilson.models.foreign import adapt as adapt
    from wilson.runs.run import run as run

__version__ = "0.1.0"

# Imported on demand, so that `import wilson.ops` needs only torch and numpy.
_LAZY = {
    "Config": "wilson.config",
    "HubModel": "wilson.hub",
    "Predictor": "wilson.inference.predict",
    "adapt": "wilson.models.foreign",
    "add_classes": "wilson.adding",
    "run": "wilson.runs.run",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'wilson' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


def load(path: str | Path, device: str = "auto", builder: str | None = None) -> Predictor:
    """Load a trained model: `wilson.load("checkpoint.pt").predict("photo.jpg")`.

    Args:
        path: the checkpoint of a step, the folder of a run or one that `wilson save` or `wilson add` wrote, or a file
            that `wilson export` wrote (.pt2, .onnx). Loading a checkpoint, a folder or a .onnx file executes nothing in
            it. A .pt2 file is a program: load it only if you trust its source.
        device: auto (the first GPU if there is one), cpu, cuda or cuda:N.
        builder: FILE.py:FUNCTION that returns the architecture of a model that was built by one; it is called.

    Returns:
        A :class:`wilson.Predictor`. Its `predict` takes a file, a PIL image or an array, uint8 (H, W, 3), and returns
        the mask id of each pixel, uint8 (H, W). `classes` holds the names of the classes, `ids` their mask ids.

    Raises:
        UserError: the file is missing, damaged or not a model, or the device is not usable.
    """
    from pathlib import Path

    from wilson.distributed import choose_device
    from wilson.inference.predict import Predictor

    return Predictor.load(Path(path), choose_device(device), builder)

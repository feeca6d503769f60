"""The networks: backbone, decoder, one classifier per step, and the localizer.

`protocol` is the interface that methods use, `segmenter` is this project's model, `weight_files` reads and writes
weights.
"""

from .backbone import build_backbone, image_statistics
from .decoder import DeepLabV3Head
from .layers import NormAct
from .localizer import Localizer
from .protocol import Prediction, SegmentationModel
from .segmenter import Segmenter, build_segmenter, new_model

__all__ = [
    "DeepLabV3Head",
    "Localizer",
    "NormAct",
    "Prediction",
    "SegmentationModel",
    "Segmenter",
    "build_backbone",
    "build_segmenter",
    "image_statistics",
    "new_model",
]

"""What a run is configured by: `options`, named `recipes`, and both as `plain` values. Imports no torch."""

from .options import (
    Activation,
    Config,
    DataConfig,
    LossConfig,
    MethodName,
    ModelConfig,
    Pooling,
    Prior,
    ProtocolName,
    StepConfig,
)
from .plain import from_dict, save, to_dict
from .recipes import COCO_VOC, DEMO, RECIPES

__all__ = [
    "COCO_VOC",
    "DEMO",
    "RECIPES",
    "Activation",
    "Config",
    "DataConfig",
    "LossConfig",
    "MethodName",
    "ModelConfig",
    "Pooling",
    "Prior",
    "ProtocolName",
    "StepConfig",
    "from_dict",
    "save",
    "to_dict",
]

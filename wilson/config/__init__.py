"""What a run is configured by: `options`, named `recipes`, and both as `plain` values. Imports no torch.

`ranges` holds what values an option may have, `validation` how a wrong one is told.
"""

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
from .plain import changed, from_dict, read_yaml, save, to_dict
from .ranges import limits
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
    "changed",
    "from_dict",
    "limits",
    "read_yaml",
    "save",
    "to_dict",
]

"""Fused ops of weakly incremental semantic segmentation, for any PyTorch code.

Needs torch and numpy alone. `B, C, H, W` are images, classes (background first), height and width. Every op takes
float64, float32, bfloat16 and float16, also mixed within a call, in any strides. It computes in float32 or better, and
works under autocast and `torch.compile(fullgraph=True)`; under the transforms of `torch.func` the reference serves. A
score of -inf rules a class out. The kernels give the same bits in every run. :mod:`wilson.ops.reference` holds the
definitions in plain PyTorch, and says what infinite numbers and NaN mean; :func:`providers` tells what runs where.
"""
# a family's `__all__` names its ops

from . import reference
from ._library import load, providers
from ._registry import OPS

# One line for each family, in the order of the documentation
# isort: off
from .pooling import *
from .soft_margin import *
from .pseudo_labels import *
from .pamr import *
from .walk import *
from .confident import *
from .upsampled import *
from .one_versus_rest import *
from .prior import *

# isort: on

load()  # the compiled kernels take over the dispatch keys that they serve

__all__ = ["providers", "reference", *OPS]
del OPS, load

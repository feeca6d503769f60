"""Fused ops of weakly incremental semantic segmentation, for any PyTorch code.

Needs torch and numpy alone. `B, C, H, W` are images, classes (background first), height and width. Every op takes
float64, float32, bfloat16 and float16 (mixed within a call, too) in any strides, computes in float32 or better, and
works under autocast and `torch.compile(fullgraph=True)`; the kernels give the same bits in every run.
:mod:`wilson.ops.reference` holds the definitions in plain PyTorch; :func:`providers` tells what runs where.
"""

from . import reference
from ._library import load, providers
from .confident import balanced_cross_entropy, confident_labels
from .pamr import pamr
from .pooling import ngwp_focal_pool
from .pseudo_labels import merge_pseudo_labels, pseudo_label_loss
from .soft_margin import localization_prior_loss, soft_margin_loss
from .upsampled import upsampled_argmax, upsampled_cross_entropy, upsampled_soft_margin_loss

load()  # the compiled kernels take over the dispatch keys that they serve

__all__ = [
    "balanced_cross_entropy",
    "confident_labels",
    "localization_prior_loss",
    "merge_pseudo_labels",
    "ngwp_focal_pool",
    "pamr",
    "providers",
    "pseudo_label_loss",
    "reference",
    "soft_margin_loss",
    "upsampled_argmax",
    "upsampled_cross_entropy",
    "upsampled_soft_margin_loss",
]
del load

"""What the training side needs of the ops besides the public ones. Not part of the API: it may change."""

from .pseudo_labels import loss_and_factor
from .reference import IMAGE_WEIGHT_EPS, upsample

__all__ = ["IMAGE_WEIGHT_EPS", "loss_and_factor", "upsample"]

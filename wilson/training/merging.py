"""Merging the weights of the model after a step with those before it."""

from __future__ import annotations

import math

import torch
from torch import nn


@torch.no_grad()
def merge_weights(model: nn.Module, old: nn.Module, new_classes: int, old_classes: int) -> None:
    """Endpoints weight fusion: theta <- (1 - w) theta_old + w theta_new with w = sqrt(N_new / (N_new + N_old)).

    EWF (Xiao et al., CVPR 2023). Parameters and floating buffers of the same name and shape in both models are merged;
    classifiers of new classes and whole numbers, such as batch counters, stay those of the new model.

    Args:
        model: after the step; changed in place.
        old: before the step, on any device.
        new_classes: N_new, classes that the step added, at least 1.
        old_classes: N_old, classes before it without the background.
    """
    share = math.sqrt(new_classes / (new_classes + old_classes))
    before = old.state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and name in before and before[name].shape == value.shape:
            value.lerp_(before[name].to(value), 1 - share)

"""A small old model, the model that learns two classes more, and a batch with masks."""

import torch

from wilson.config import LossConfig
from wilson.methods import METHODS, Settings
from wilson.models import build_segmenter

OLD, NEW = 3, 2  # background counts as old
C, SIDE = OLD + NEW, 32


def small_parts():
    """Model, old model and batch."""
    torch.manual_seed(0)
    old = build_segmenter("small_resnet", 4, "none", 8, [OLD], SIDE, (1, 2, 3))
    with torch.no_grad():
        old.get_parameter("classifiers.0.weight").mul_(10)  # so that its entropy varies
    model = old.extended(NEW)
    mask = torch.randint(0, NEW + 1, (3, SIDE, SIDE))
    return model, old, {"image": torch.randn(3, 3, SIDE, SIDE), "mask": torch.where(mask > 0, mask + OLD - 1, 0)}


def build(name, parts, **losses):
    return METHODS[name](parts[0], parts[1], Settings(LossConfig(**losses)))


def moved(module):
    """The same module after a little training: not where it started."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module

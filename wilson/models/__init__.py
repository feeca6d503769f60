"""Backbone, decoder, classifiers per step and localizer."""

from .backbone import build_backbone
from .decoder import DeepLabV3Head
from .layers import NormAct
from .localizer import Localizer
from .segmenter import Segmenter, build_segmenter

__all__ = ["DeepLabV3Head", "Localizer", "NormAct", "Segmenter", "build_backbone", "build_segmenter"]

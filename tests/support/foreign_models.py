"""Small models as other libraries build them, and the parts of the zoo of real ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 4


class Net(nn.Module):
    """Backbone of stride 4, a head with batch-norm, a classifier; the output has the image's size."""

    def __init__(self, classes: int = CLASSES, *, aux: bool = False, kernel: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Sequential(nn.Conv2d(12, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.1))
        self.final = nn.Conv2d(8, classes, kernel, padding=kernel // 2, bias=bias)
        self.aux_head = nn.Conv2d(12, classes, 1) if aux else None

    def forward(self, image: Tensor) -> Any:
        features = self.backbone(image)
        scores = self.up(self.final(self.head(features)), image)
        if self.aux_head is None:
            return scores
        return {"out": scores, "aux": self.up(self.aux_head(features), image)}

    def up(self, scores: Tensor, image: Tensor) -> Tensor:
        return F.interpolate(scores, image.shape[2:], mode="bilinear", align_corners=False)


class Tokens(nn.Module):
    """Patches of 4 pixels with a class token in front, as a ViT has, and a linear classifier on the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Patches()
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        scores = self.classifier(self.encoder(image)[:, 1:]).transpose(1, 2).unflatten(2, (image.shape[2] // 4, -1))
        return (F.interpolate(scores, image.shape[2:], mode="bilinear", align_corners=False),)


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.norm = nn.LayerNorm(12)
        self.token = nn.Parameter(torch.zeros(1, 1, 12))

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.norm(self.patch(image).flatten(2).transpose(1, 2))
        return torch.cat([self.token.expand(len(image), -1, -1), tokens], 1)


class Two(nn.Module):
    """Adds up two classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, CLASSES, 1), nn.Conv2d(3, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.low(image) + self.high(image)


class Queries(nn.Module):
    """Predicts masks by queries."""

    def __init__(self) -> None:
        super().__init__()
        self.masks = nn.Conv2d(3, 10, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"class_queries_logits": torch.zeros(1, 10, CLASSES), "masks_queries_logits": self.masks(image)}


def torchvision_zoo() -> dict[str, Callable[[], nn.Module]]:
    from torchvision.models import segmentation

    options = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
    names = ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large")
    return {name: partial(getattr(segmentation, name), **options, aux_loss=True) for name in names}


def smp_zoo() -> dict[str, Callable[[], nn.Module]]:
    import segmentation_models_pytorch as smp

    def make(name: str) -> Callable[[], nn.Module]:
        return lambda: getattr(smp, name)("resnet18", encoder_weights=None, classes=CLASSES)

    names = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus")
    return {name: make(name) for name in (*names, "UPerNet", "Segformer")}


def transformers_zoo() -> dict[str, Callable[[], nn.Module]]:
    T: Any = importlib.import_module("transformers")  # whose configurations take what their types do not say

    vit: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    vit |= {"image_size": 64, "patch_size": 16, "num_labels": CLASSES}
    beit = {**vit, "out_indices": [1, 2, 3, 4], "use_auxiliary_head": True}
    dpt = {**vit, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 16}
    segformer = {"hidden_sizes": [8, 16, 16, 32], "decoder_hidden_size": 16, "num_labels": CLASSES}

    def upernet() -> nn.Module:
        stages = ["stage1", "stage2", "stage3", "stage4"]
        backbone = T.ConvNextConfig(hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], out_features=stages)
        config = T.UperNetConfig(backbone_config=backbone, hidden_size=32, num_labels=CLASSES, auxiliary_in_channels=32)
        return T.UperNetForSemanticSegmentation(config)

    return {
        "segformer": lambda: T.SegformerForSemanticSegmentation(T.SegformerConfig(**segformer)),
        "beit": lambda: T.BeitForSemanticSegmentation(T.BeitConfig(**beit)),
        "data2vec": lambda: T.Data2VecVisionForSemanticSegmentation(T.Data2VecVisionConfig(**beit)),
        "dpt": lambda: T.DPTForSemanticSegmentation(T.DPTConfig(**dpt)),
        "mobilevit": lambda: T.MobileViTForSemanticSegmentation(T.MobileViTConfig(num_labels=CLASSES)),
        "mobilevitv2": lambda: T.MobileViTV2ForSemanticSegmentation(T.MobileViTV2Config(num_labels=CLASSES)),
        "mobilenet_v2": lambda: T.MobileNetV2ForSemanticSegmentation(T.MobileNetV2Config(num_labels=CLASSES)),
        "upernet": upernet,
    }


ZOO = {
    "torchvision": ("torchvision", torchvision_zoo),
    "smp": ("segmentation_models_pytorch", smp_zoo),
    "transformers": ("transformers", transformers_zoo),
}

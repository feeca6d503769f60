"""Backbones: any timm model with features, SegFormer's, the wide residual network, or the demo's small one."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from wilson.config import Activation, Config
from wilson.errors import UserError, first_line

from .depthwise import quicken
from .layers import LEAKY_SLOPE
from .small import SmallResNet
from .transformer import MIT, Transformer
from .weight_files import load_weights
from .wide_resnet import WideResNet

SMALL, WIDE = "small_resnet", "wide_resnet38_a2"
OWN: dict[str, type[SmallResNet | WideResNet]] = {SMALL: SmallResNet, WIDE: WideResNet}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CannotDilateError(Exception):
    """A timm model whose constructor takes no output stride."""


class TimmBackbone(nn.Module):
    """The last feature map of a timm model that can be dilated: (B, 3, H, W) -> (B, channels, H/stride, W/stride).

    Args:
        name: of the timm model.
        stride: pixels of the image per pixel of the features.
        pretrained: load timm's pretrained weights.
        activation: "own", or "leaky_relu" (slope 0.01).

    Raises:
        UserError: the model has no features at this stride, or does not take the activation.
        CannotDilateError: it takes no stride at all.
    """

    def __init__(self, name: str, stride: int, pretrained: bool = False, activation: Activation = "own") -> None:
        import timm

        super().__init__()
        self.name = name
        options: Any = (
            {"act_layer": partial(nn.LeakyReLU, negative_slope=LEAKY_SLOPE)} if activation == "leaky_relu" else {}
        )
        try:
            self.body = timm.create_model(
                name, features_only=True, out_indices=(-1,), output_stride=stride, pretrained=pretrained, **options
            )
        except (NotImplementedError, TypeError, AssertionError, AttributeError) as error:
            if isinstance(error, TypeError) and not options:
                raise CannotDilateError(name) from error
            raise UserError(
                f"backbone {name} cannot give features at stride {stride} with activation {activation}: {error}; "
                "choose stride 8 or 16 and a convolutional model, such as resnet101 or tf_efficientnet_lite0"
            ) from error
        info: Any = self.body.feature_info
        self.channels: int = info.channels()[-1]
        self.stride: int = info.reduction()[-1]
        if self.stride != stride:
            raise UserError(f"backbone {name} has stride {self.stride}, expected {stride}; choose another stride")
        _dilate_first_blocks(self.body)
        quicken(self.body)

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image)[-1]

    def stages(self) -> list[nn.Module]:
        """The modules whose outputs are timm's feature maps; a stem without parameters is left out."""
        parts = dict(self.body.named_modules())
        names = [info["module"] for info in self.body.feature_info.info]  # type: ignore[union-attr]
        found = [parts[name if name in parts else name.replace(".", "_")] for name in names]
        return [part for part in found if list(part.parameters())]

    def layers(self) -> list[list[nn.Parameter]] | None:
        """The parameters of each layer, from the first to the last, as timm numbers them; None if it does not."""
        import timm
        from timm.models import group_parameters

        with torch.device("meta"):
            whole: Any = timm.create_model(self.name, num_classes=0)
        if not hasattr(whole, "group_matcher"):
            return None
        numbers = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
        # The extractor of features flattens some names, such as stages.0 to stages_0
        numbers = {name.replace(".", "_"): number for name, number in numbers.items()}
        layers: defaultdict[int, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.body.named_parameters():
            layers[numbers[name.replace(".", "_")]].append(parameter)
        return [layers[number] for number in sorted(layers)]


Backbone: TypeAlias = TimmBackbone | Transformer | SmallResNet | WideResNet


def _dilate_first_blocks(body: nn.Module) -> None:
    """Give the first block of each stage of a residual network the dilation of its other blocks, as published.

    timm gives it the dilation of the stage before.
    """
    from timm.models.resnet import BasicBlock, Bottleneck

    for stage in body.children():
        if isinstance(stage, nn.Sequential) and isinstance(stage[-1], (BasicBlock, Bottleneck)):
            for conv in (stage[0].conv1, stage[0].conv2):
                if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                    conv.dilation = conv.padding = stage[-1].conv2.dilation


def build_backbone(name: str, stride: int, weights: str = "none", activation: Activation = "own") -> Backbone:
    """Build a feature extractor with the attributes `channels` and `stride`.

    Args:
        name: a timm model with features ("resnet101", "vit_small_patch14_dinov2", ...), "mit_b0" to "mit_b5",
            "wide_resnet38_a2", or "small_resnet".
        stride: pixels of the image per pixel of the features. Models that can be dilated have 8 or 16, plain vision
            transformers the side of their patches, others those of their stages, "wide_resnet38_a2" 8, "small_resnet"
            4.
        weights: "hub" for the pretrained weights of timm (mit: of segmentation_models.pytorch), "none" for random ones,
            or a local .safetensors or .pth file. Its tensors must have the model's names: timm's, or those that
            `wilson weights import` writes.
        activation: of a timm model that can be dilated, "own" or "leaky_relu" (slope 0.01); the last two above always
            use leaky ReLU.

    Returns:
        A module from images (B, 3, H, W) to features (B, channels, H/stride, W/stride).

    Raises:
        UserError: the model is unknown, does not offer the stride, or the file does not fit.
    """
    backbone: Backbone
    if name in OWN:
        kind = OWN[name]
        if stride != kind.stride:
            raise UserError(f"backbone {name} has stride {kind.stride}, got {stride}; set the stride to {kind.stride}")
        if weights == "hub":
            raise UserError(f"backbone {name} has no pretrained weights in timm's hub; use weights none, or a file")
        backbone = kind()
    else:
        _check_name(name)
        if weights == "hub":
            _check_hub(name)
        try:
            backbone = _open(name, stride, weights == "hub", activation)
        except (OSError, RuntimeError) as error:
            if weights != "hub":
                raise
            raise UserError(
                f"the pretrained weights of {name} could not be loaded from timm's hub: {error}; "
                "download them on another machine and pass the file as weights, or use weights none"
            ) from error
    if weights not in ("hub", "none"):
        load_weights(body(backbone), Path(weights), activation="leaky_relu" if name in OWN else activation)
    return backbone


def _open(name: str, stride: int, pretrained: bool, activation: Activation) -> TimmBackbone | Transformer:
    """Dilate a timm model if it can be dilated; else take its maps as they are."""
    try:
        if name not in MIT:
            return TimmBackbone(name, stride, pretrained, activation)
    except CannotDilateError:
        pass
    if activation != "own":
        raise UserError(f"backbone {name} has an activation of its own, got {activation}; use --model.activation own")
    return Transformer(name, stride, pretrained)


def body(backbone: Backbone) -> nn.Module:
    """The module whose state dict a file of weights holds."""
    return backbone.body if isinstance(backbone, (TimmBackbone, Transformer)) else backbone


def image_statistics(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for the normalisation of images: the configuration's, else the backbone's."""
    if config.data.mean and config.data.std:
        return config.data.mean, config.data.std
    mean, std = normalization(config.model.backbone)
    return config.data.mean or mean, config.data.std or std


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a backbone's training images, per channel, for RGB in 0..1."""
    if name == SMALL:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if name == WIDE or name in MIT:
        return IMAGENET_MEAN, IMAGENET_STD
    import timm

    _check_name(name)
    cfg = timm.get_pretrained_cfg(name)
    return (IMAGENET_MEAN, IMAGENET_STD) if cfg is None else (cfg.mean, cfg.std)


def _check_hub(name: str) -> None:
    """Ask the hub once, if it has the weights and they were not fetched before; timm would try for a minute."""
    import timm
    from huggingface_hub import constants, get_session, try_to_load_from_cache

    cfg = None if name in MIT else timm.get_pretrained_cfg(name)
    if name in MIT:
        repository = f"smp-hub/{name}.imagenet"
    elif cfg is None or not cfg.hf_hub_id:
        return
    elif cfg.hf_hub_id.endswith("/"):
        repository = f"{cfg.hf_hub_id}{cfg.architecture}.{cfg.tag}"
    else:
        repository = cfg.hf_hub_id
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # the HTTP library differs from version to version
        raise UserError(
            f"the pretrained weights of {name} could not be loaded: {constants.ENDPOINT} cannot be reached "
            f"({first_line(error)}); download them on another machine and give the file with --model.weights, or use "
            "--model.weights none"
        ) from error


def _check_name(name: str) -> None:
    import timm

    if name in MIT:
        return
    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name[:6]}*")[:5]
        hint = f"; close: {', '.join(near)}" if near else ""
        raise UserError(f"backbone {name}: timm knows no such model{hint}")

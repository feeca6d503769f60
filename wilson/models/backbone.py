"""Feature extractors: any timm model with features, the wide residual network, or the small one of the demo."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from wilson.errors import UserError

from .layers import LEAKY_SLOPE
from .small import SmallResNet
from .wide_resnet import WideResNet

SMALL, WIDE = "small_resnet", "wide_resnet38_a2"
OWN: dict[str, type[SmallResNet | WideResNet]] = {SMALL: SmallResNet, WIDE: WideResNet}
Activation: TypeAlias = Literal["own", "leaky_relu"]
ACTIVATION = "activation"  # its key in the metadata of a .safetensors file
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TimmBackbone(nn.Module):
    """The last feature map of a timm model: (B, 3, H, W) -> (B, channels, H/stride, W/stride)."""

    def __init__(self, name: str, stride: int, pretrained: bool = False, activation: Activation = "own") -> None:
        import timm

        super().__init__()
        options: Any = (
            {"act_layer": partial(nn.LeakyReLU, negative_slope=LEAKY_SLOPE)} if activation == "leaky_relu" else {}
        )
        try:
            self.body = timm.create_model(
                name, features_only=True, out_indices=(-1,), output_stride=stride, pretrained=pretrained, **options
            )
        except (NotImplementedError, TypeError, AssertionError, AttributeError) as error:
            raise UserError(
                f"backbone {name} cannot give features at stride {stride} with activation {activation}: {error}; "
                "choose stride 8 or 16 and a convolutional model, such as resnet101 or tf_efficientnet_lite0"
            ) from error
        info: Any = self.body.feature_info
        self.channels: int = info.channels()[-1]
        self.stride: int = info.reduction()[-1]
        if self.stride != stride:
            raise UserError(f"backbone {name} has stride {self.stride}, asked for {stride}; choose another stride")
        _dilate_first_blocks(self.body)

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image)[-1]


Backbone: TypeAlias = TimmBackbone | SmallResNet | WideResNet


def _dilate_first_blocks(body: nn.Module) -> None:
    """Give the first block of a residual network's stages the dilation of the others, as the published network has it.

    timm leaves the first block at the dilation of the stage before.
    """
    from timm.models.resnet import BasicBlock, Bottleneck

    for stage in body.children():
        if isinstance(stage, nn.Sequential) and isinstance(stage[-1], (BasicBlock, Bottleneck)):
            for conv in (stage[0].conv1, stage[0].conv2):
                if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                    conv.dilation = conv.padding = stage[-1].conv2.dilation


def build_backbone(name: str, stride: int, weights: str = "none", activation: Activation = "own") -> Backbone:
    """A feature extractor with the attributes `channels` and `stride`.

    Args:
        name: a timm model with features ("resnet101", "tf_efficientnet_lite0", ...), "wide_resnet38_a2", or
            "small_resnet".
        stride: pixels of the image per pixel of the features, 8 or 16 (wide_resnet38_a2: 8, small_resnet: 4).
        weights: "hub" for timm's pretrained weights, "none" for random ones, or a local .safetensors or .pth file in
            the names of the model: timm's, or what `wilson weights import` wrote.
        activation: of a timm model, "own" or "leaky_relu" (slope 0.01); the other two always have leaky ReLU.

    Raises:
        UserError: unknown model, a stride that it does not offer, or a file that does not fit.
    """
    backbone: Backbone
    if name in OWN:
        kind = OWN[name]
        if stride != kind.stride:
            raise UserError(f"backbone {name} has stride {kind.stride}, asked for {stride}; set the stride to that")
        if weights == "hub":
            raise UserError(f"backbone {name} has no pretrained weights in timm's hub; use weights none, or a file")
        backbone = kind()
    else:
        _check_name(name)
        try:
            backbone = TimmBackbone(name, stride, weights == "hub", activation)
        except (OSError, RuntimeError) as error:
            if weights != "hub":
                raise
            raise UserError(
                f"the pretrained weights of {name} could not be loaded from timm's hub: {error}; "
                "download them elsewhere and pass the file as weights, or use weights none"
            ) from error
    if weights not in ("hub", "none"):
        load_weights(body(backbone), Path(weights), activation="leaky_relu" if name in OWN else activation)
    return backbone


def body(backbone: Backbone) -> nn.Module:
    """The module whose names a file of weights has."""
    return backbone.body if isinstance(backbone, TimmBackbone) else backbone


def load_weights(model: nn.Module, path: Path, activation: Activation = "own") -> None:
    """Load a state dict; what only the file has (the classifier) is left out, what only the model has is refused.

    Args:
        model: takes the weights.
        path: the file.
        activation: the model's; a .safetensors file may name the one that its weights were trained with.

    Raises:
        UserError: the file is missing, no state dict, lacks or misshapes a tensor of the model, or was trained with
            another activation.
    """
    state, metadata = read_weights(path)
    trained_with = metadata.get(ACTIVATION, activation)
    if trained_with != activation:
        raise UserError(
            f"weights {path} were trained with the activation {trained_with}, the backbone has {activation}; "
            f"use --model.activation {trained_with}"
        )
    wanted = model.state_dict()
    wrong = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
    wrong = [k for k in wrong if not k.endswith("num_batches_tracked")]
    if wrong:
        raise UserError(
            f"weights {path} do not fit the backbone: {len(wrong)} of {len(wanted)} tensors are missing or of another "
            f"shape, the first {wrong[0]}; give weights of this very model "
            "(published in-place-ABN weights: see wilson weights import)"
        )
    model.load_state_dict({k: state[k] for k in wanted if k in state}, strict=False)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A state dict, and the metadata that a .safetensors file has; nothing in the file is executed.

    Raises:
        UserError: the file is missing or no state dict.
    """
    if not path.is_file():
        raise UserError(f"weights {path}: no such file; give a .safetensors or .pth file, hub, or none")
    try:
        if path.suffix != ".safetensors":
            return dict(torch.load(path, map_location="cpu", weights_only=True)), {}
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # each format has errors of its own for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"weights {path}: not a readable state dict: {reason}") from error


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images that a backbone was trained on, per channel, for RGB in 0..1."""
    if name == SMALL:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if name == WIDE:
        return IMAGENET_MEAN, IMAGENET_STD
    import timm

    _check_name(name)
    cfg = timm.get_pretrained_cfg(name)
    return (IMAGENET_MEAN, IMAGENET_STD) if cfg is None else (cfg.mean, cfg.std)


def _check_name(name: str) -> None:
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name[:6]}*")[:5]
        hint = f"; close: {', '.join(near)}" if near else ""
        raise UserError(f"backbone {name}: timm knows no such model{hint}")

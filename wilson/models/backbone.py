"""Feature extractors: any timm model with features, or the small one of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wilson.errors import UserError

from .small import SmallResNet

SMALL = "small_resnet"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TimmBackbone(nn.Module):
    """The last feature map of a timm model: (B, 3, H, W) -> (B, channels, H/stride, W/stride)."""

    def __init__(self, name: str, stride: int, pretrained: bool = False) -> None:
        import timm

        super().__init__()
        try:
            self.body = timm.create_model(
                name, features_only=True, out_indices=(-1,), output_stride=stride, pretrained=pretrained
            )
        except (NotImplementedError, TypeError, AssertionError, AttributeError) as error:
            raise UserError(
                f"backbone {name} cannot give features at stride {stride}: {error}; "
                "choose stride 8 or 16 and a convolutional model, such as resnet101 or tf_efficientnet_lite0"
            ) from error
        info: Any = self.body.feature_info
        self.channels: int = info.channels()[-1]
        self.stride: int = info.reduction()[-1]
        if self.stride != stride:
            raise UserError(f"backbone {name} has stride {self.stride}, asked for {stride}; choose another stride")

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image)[-1]


def build_backbone(name: str, stride: int, weights: str = "none") -> TimmBackbone | SmallResNet:
    """A feature extractor with the attributes `channels` and `stride`.

    Args:
        name: a timm model with features ("resnet101", "tf_efficientnet_lite0", ...), or "small_resnet".
        stride: pixels of the image per pixel of the features, 8 or 16 (small_resnet: 4).
        weights: "hub" for timm's pretrained weights, "none" for random ones, or a local .safetensors or .pth file in
            timm's names.

    Raises:
        UserError: unknown model, a stride that it does not offer, or a file that does not fit.
    """
    if name == SMALL:
        if stride != SmallResNet.stride:
            raise UserError(f"backbone {SMALL} has stride {SmallResNet.stride}, asked for {stride}")
        backbone: TimmBackbone | SmallResNet = SmallResNet()
        if weights == "hub":
            raise UserError(f"backbone {SMALL} has no pretrained weights; use weights none")
    else:
        _check_name(name)
        try:
            backbone = TimmBackbone(name, stride, pretrained=weights == "hub")
        except (OSError, RuntimeError) as error:
            if weights != "hub":
                raise
            raise UserError(
                f"the pretrained weights of {name} could not be loaded from timm's hub: {error}; "
                "download them elsewhere and pass the file as weights, or use weights none"
            ) from error
    if weights not in ("hub", "none"):
        load_weights(backbone.body if isinstance(backbone, TimmBackbone) else backbone, Path(weights))
    return backbone


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict; what only the file has (the classifier) is left out, what only the model has is refused.

    Raises:
        UserError: the file is missing, no state dict, or lacks or misshapes a tensor of the model.
    """
    if not path.is_file():
        raise UserError(f"weights {path}: no such file; give a .safetensors or .pth file, hub, or none")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has errors of its own for a broken file
        raise UserError(f"weights {path}: not a readable state dict: {error}") from error
    wanted = model.state_dict()
    wrong = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
    wrong = [k for k in wrong if not k.endswith("num_batches_tracked")]
    if wrong:
        raise UserError(
            f"weights {path} do not fit the backbone: {len(wrong)} of {len(wanted)} tensors are missing or of another "
            f"shape, the first {wrong[0]}; give weights of this very timm model"
        )
    model.load_state_dict({k: state[k] for k in wanted if k in state}, strict=False)


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images that a backbone was trained on, per channel, for RGB in 0..1."""
    if name == SMALL:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
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

"""Vision transformers as backbones: plain ones at the stride of their patches, and those with stages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wilson.errors import UserError, first_line

MIT = tuple(f"mit_b{size}" for size in range(6))  # SegFormer's encoders, which timm lacks
MIT_STRIDES = (4, 8, 16, 32)


class Transformer(nn.Module):
    """The feature map of a model that cannot be dilated: (B, 3, H, W) -> (B, channels, H/stride, W/stride).

    An image is first resized to the next multiple of the coarsest stride, so that the map covers all of it. Position
    embeddings keep the grid of their weights and are resampled to each image. Class and register tokens are dropped.
    A plain transformer gives the tokens of its last block after its norm. Of a model with stages, the maps at `stride`
    and coarser are brought to `stride` and concatenated. Maps that the model does not normalise itself are sums of
    residuals of any scale; these are normalised over their channels, without weights. Windows keep their size and are
    shifted at any size of the image.

    Args:
        name: of the timm model, or one of `MIT`.
        stride: of a plain transformer the side of its patches; else that of one of its stages.
        pretrained: load the pretrained weights of timm, or of segmentation_models.pytorch.

    Raises:
        UserError: the model has no map at this stride, or takes images of a single size.
    """

    def __init__(self, name: str, stride: int, pretrained: bool = False) -> None:
        super().__init__()
        self.name = name
        self.body, strides = _mit(name, pretrained) if name in MIT else _timm(name, pretrained)
        self.plain = len(set(strides)) == 1
        if stride not in strides:
            only = f"stride {strides[0]}" if self.plain else f"strides {', '.join(map(str, strides))}"
            raise UserError(f"backbone {name} has {only}, got {stride}; set the stride to one it has")
        self.stride, self.coarsest = stride, max(strides)
        # Of a plain transformer, a quarter of its blocks counts as a stage
        count = len(strides)
        ends = {max(0, count * quarter // 4 - 1) for quarter in (1, 2, 3, 4)} if self.plain else set(range(count))
        self.taken = sorted(ends)
        self.fused = 1 if self.plain else sum(each >= stride for each in strides)  # so many of the last maps
        self.maps = nn.ModuleList(nn.Identity() for _ in self.taken)  # each stage's map passes through one of them
        self.normalized = self.plain and isinstance(getattr(self.body, "norm", None), nn.LayerNorm)
        if name not in MIT:
            self.body.prune_intermediate_layers(self.taken, prune_norm=not self.normalized, prune_head=True)
        self.channels = self._channels()

    def forward(self, image: Tensor) -> Tensor:
        unit = self.coarsest
        size = [(side + unit - 1) // unit * unit for side in image.shape[2:]]  # ONNX rounds negative quotients up
        found = self._maps(F.interpolate(image, size=size, mode="bilinear", align_corners=False))
        found = [keep(each) for keep, each in zip(self.maps, map(self._normalize, found), strict=True)]
        finest, *coarser = found[-self.fused :]
        size = list(finest.shape[2:])
        return torch.cat([finest, *(F.interpolate(each, size=size, mode="bilinear") for each in coarser)], 1)

    @property
    def windowed(self) -> bool:
        """Whether attention looks at windows, as timm's models name them."""
        return any(hasattr(module, "window_size") or hasattr(module, "ws") for module in self.body.modules())

    def stages(self) -> list[nn.Module]:
        """Modules through which the maps of the stages pass; of a plain transformer, those of each quarter."""
        return list(self.maps)

    def layers(self) -> list[list[nn.Parameter]] | None:
        """The parameters of each layer, from the first to the last, as timm numbers them; None if it does not."""
        from timm.models import group_parameters

        if not hasattr(self.body, "group_matcher"):
            return None
        layers = group_parameters(self.body, self.body.group_matcher(coarse=False), return_values=True)
        return [layers[number] for number in sorted(layers)]

    def _maps(self, image: Tensor) -> list[Tensor]:
        """The maps (B, channels, h, w) of the taken stages."""
        if self.name in MIT:
            return self.body(image)[-len(self.taken) :]
        return self.body.forward_intermediates(
            image, self.taken, norm=self.normalized, output_fmt="NCHW", intermediates_only=True
        )

    def _normalize(self, features: Tensor) -> Tensor:
        if self.normalized:
            return features
        return F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)

    @torch.no_grad()
    def _channels(self) -> int:
        """The channels of the result; seen on a small image that is not square, which shows a model of one size."""
        training = self.training
        try:
            return self.eval()(torch.zeros(1, 3, 2 * self.coarsest, 3 * self.coarsest)).shape[1]
        except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"backbone {self.name} does not take images of any size: {first_line(error)}; choose one that does, "
                "such as vit_small_patch16_224, vit_small_patch14_dinov2 or swin_tiny_patch4_window7_224"
            ) from error
        finally:
            self.train(training)


def _timm(name: str, pretrained: bool) -> tuple[Any, list[int]]:
    """A whole timm model for images of any size, and the stride after each of its blocks or stages."""
    import timm

    # timm fits windows to the size that a model is made for, and does not shift them on a map of a single window
    choices: tuple[dict[str, Any], ...]
    choices = {"dynamic_img_size": True, "always_partition": True}, {"dynamic_img_size": True}, {}
    model: Any
    for options in choices:
        try:
            model = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
            break
        except TypeError:  # it has no windows; or no position embeddings, or none that can be resampled
            if not options:
                raise
    if not hasattr(model, "prune_intermediate_layers"):
        raise UserError(f"backbone {name}: timm takes no feature maps from it; choose another model")
    return model, [info["reduction"] for info in model.feature_info]


def _mit(name: str, pretrained: bool) -> tuple[Any, list[int]]:
    try:
        from segmentation_models_pytorch.encoders import get_encoder
    except ImportError as error:
        raise UserError(
            f"backbone {name} comes from segmentation_models.pytorch, which is missing: "
            "pip install segmentation-models-pytorch"
        ) from error
    return get_encoder(name, weights="imagenet" if pretrained else None), list(MIT_STRIDES)

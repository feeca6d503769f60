"""The class of every pixel, as the model or the localizer predicts it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from wilson import ops
from wilson.config.masks import BACKGROUND, VOID
from wilson.methods.base import WeaklySupervised
from wilson.models import SegmentationModel

from .windows import Window, sliding


def segment(
    model: SegmentationModel,
    image: Tensor,
    mask: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: Window | None = None,
) -> Tensor:
    """Predict the class of every pixel of the mask: the arg-max of the upsampled logits.

    With several views (every scale, each with its mirror image if `flip`), the softmax of the upsampled logits is
    averaged over the views. In-place ABN is tested the same way (Rota Bulò et al., CVPR 2018), and the published models
    use its networks.

    Args:
        model: in eval mode.
        image: normalised, (B, 3, H, W).
        mask: (B, H', W'); only its size is used.
        scales: sizes of the views relative to `image`, positive.
        flip: use the mirror image of each view, too.
        window: slides over each view; None lets the model see a view at once.

    Returns:
        Output channels, integers (B, H', W').
    """
    size = (mask.shape[1], mask.shape[2])
    mirrors = (False, True) if flip else (False,)
    views = [_view(model, image, scale, mirror, window) for scale in scales for mirror in mirrors]
    if len(views) == 1:
        return ops.upsampled_argmax(views[0], size)
    # One image at a time: the probabilities of all classes at the mask's size take much memory.
    return torch.cat([_fuse(logits, size) for logits in zip(*(view.split(1) for view in views), strict=True)])


def _view(model: SegmentationModel, image: Tensor, scale: float, mirror: bool, window: Window | None) -> Tensor:
    """Logits of a scaled and perhaps mirrored image; mirrored logits are turned back."""
    if scale != 1:
        size = [max(1, round(side * scale)) for side in image.shape[2:]]
        image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
    seen = image.flip(3) if mirror else image
    logits = model(seen).logits if window is None else sliding(model, seen, window)
    return logits.flip(3) if mirror else logits


def _fuse(logits: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
    views = [F.interpolate(view, size=size, mode="bilinear", align_corners=False).softmax(1) for view in logits]
    return torch.stack(views).mean(0).argmax(1)


def localize(method: WeaklySupervised, image: Tensor, mask: Tensor) -> Tensor:
    """Predict the class of every pixel with the localizer, among the classes that the image shows.

    The prediction is the arg-max of the localizer's upsampled probabilities. It chooses among the background and all
    classes in the mask, old and new. The image-level labels of an incremental step would not do: they are 0 for old
    classes, so the localizer could never find one.

    Args:
        method: in eval mode.
        image: normalised, (B, 3, H, W).
        mask: output channels, (B, H', W'); 255 without a label.

    Returns:
        Output channels, integers (B, H', W').
    """
    probabilities = method.probabilities(image)
    shown = probabilities.new_zeros(len(mask), VOID + 1).scatter_(1, mask.flatten(1), 1.0)
    shown[:, BACKGROUND] = 1
    shown = shown[:, : probabilities.shape[1], None, None]
    return ops.upsampled_argmax(probabilities * shown, (mask.shape[1], mask.shape[2]))

"""Refining masks by the image's colours (PAMR, PAR)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, _library, _registry, reference
from ._autograd import under_transform

__all__ = ["pamr", "par"]

PAMR = "pamr"
PAR = "par"


@_registry.raw("pamr")
def _pamr(
    image: Tensor, mask: Tensor, image_labels: Tensor | None, iterations: int, dilations: Sequence[int]
) -> Tensor:
    _library.note_reference(PAMR, image)
    return reference.pamr(image, mask, image_labels=image_labels, iterations=iterations, dilations=dilations)


@_registry.raw("par")
def _par(image: Tensor, mask: Tensor, image_labels: Tensor | None, iterations: int, dilations: Sequence[int]) -> Tensor:
    _library.note_reference(PAR, image)
    return reference.par(image, mask, image_labels=image_labels, iterations=iterations, dilations=dilations)


@torch.library.register_fake(_pamr)
@torch.library.register_fake(_par)
def _(image: Tensor, mask: Tensor, image_labels: Tensor | None, iterations: int, dilations: Sequence[int]) -> Tensor:
    batch, classes = mask.shape[:2]
    return mask.new_empty((batch, classes, *image.shape[2:]), dtype=reference.accumulate(image, mask))


@_registry.op("masks refined by the image's colours")
def pamr(
    image: Tensor,
    mask: Tensor,
    *,
    image_labels: Tensor | None = None,
    iterations: int = 10,
    dilations: Sequence[int] = (1, 2, 4, 8, 12),
) -> Tensor:
    """Pixel-adaptive mask refinement: every pixel of the mask becomes a mean of neighbours of similar colour, repeated.

    For the 8 neighbours n of pixel i at each dilation, coordinates clamped to the image::

        k_in = mean over channels of -|x_i - x_n| / (1e-8 + 0.1 sigma_i)     a_in = softmax of k over n
        mask_i <- sum_n a_in mask_n

    sigma_i is the unbiased standard deviation over those neighbours and the centre once per dilation. Araslanov and
    Roth, "Single-Stage Semantic Segmentation from Image Labels" (CVPR 2020), as in WILSON's published code. Computed in
    float32 at least: in half precision a flat neighbourhood would give 0/0.

    Args:
        image: RGB in 0..1 `(B, 3, H, W)`, floating.
        mask: scores to refine `(B, C, h, w)`, floating; resized to (H, W) first if they differ (bilinear, corners
            aligned).
        image_labels: 0 or 1 for each class but the background `(B, C-1)`, bool, integer or floating. Only the
            background and the classes whose label is not 0 are refined; the others give 0. The bits are those of
            refining all and multiplying by labels of 0 and 1, at a fraction of the cost. None refines all classes.
        iterations: number of passes, >= 1.
        dilations: distances of the neighbours in pixels, each >= 1.

    Returns:
        The refined mask `(B, C, H, W)`, float64 if an input is, else float32.

    Raises:
        TypeError: image or mask is not floating.
        ValueError: the image is not `(B, 3, H, W)`, batches differ, the labels are not `(B, C-1)`, or an iteration
            count or dilation is under 1.

    Not differentiable.
    """
    image_labels = _checked(PAMR, image, mask, image_labels, iterations, dilations)
    if under_transform():
        return reference.pamr(image, mask, image_labels=image_labels, iterations=iterations, dilations=dilations)
    return _pamr(image.detach(), mask.detach(), image_labels, int(iterations), [int(d) for d in dilations])


@_registry.op("masks refined by colours and distances, as PAR weighs them")
def par(
    image: Tensor,
    mask: Tensor,
    *,
    image_labels: Tensor | None = None,
    iterations: int = 10,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
) -> Tensor:
    """Pixel-adaptive refinement: :func:`pamr` by other affinities, which tell colours apart more sharply.

    For the 8 neighbours n of pixel i at each dilation, coordinates clamped to the image, rho_n away::

        k_in = mean over channels of -(|x_i - x_n| / (sigma_i + 1e-8) / 0.3)^2
        a_in = softmax of k over n + 0.01 softmax of -(rho_n / (sigma_rho + 1e-8) / 0.3)^2 over n
        mask_i <- sum_n a_in mask_n

    sigma_i and sigma_rho are the unbiased standard deviations over those neighbours, without the centre; rho_n is the
    dilation, times the root of 2 on diagonals. The weights of a pixel add up to 1.01, so the mask grows by 1 % in each
    iteration. Ru et al., "Learning Affinity from Attention: End-to-End Weakly-Supervised Semantic Segmentation with
    Transformers" (CVPR 2022). Computed in float32 at least. A channel whose neighbours are all alike, whatever the
    centre, tells none of them apart; the formula's huge squares there cost the other channels no digits.

    Args:
        image: RGB in 0..1 `(B, 3, H, W)`, floating.
        mask: scores to refine `(B, C, h, w)`, floating; resized to (H, W) first if they differ (bilinear, corners
            aligned).
        image_labels: 0 or 1 for each class but the background `(B, C-1)`, bool, integer or floating. Only the
            background and the classes whose label is not 0 are refined; the others give 0. None refines all classes.
        iterations: number of passes, >= 1.
        dilations: distances of the neighbours in pixels, each >= 1.

    Returns:
        The refined mask `(B, C, H, W)`, float64 if an input is, else float32.

    Raises:
        TypeError: image or mask is not floating.
        ValueError: the image is not `(B, 3, H, W)`, batches differ, the labels are not `(B, C-1)`, or an iteration
            count or dilation is under 1.

    Not differentiable.
    """
    image_labels = _checked(PAR, image, mask, image_labels, iterations, dilations)
    if under_transform():
        return reference.par(image, mask, image_labels=image_labels, iterations=iterations, dilations=dilations)
    return _par(image.detach(), mask.detach(), image_labels, int(iterations), [int(d) for d in dilations])


def _checked(
    op: str, image: Tensor, mask: Tensor, image_labels: Tensor | None, iterations: int, dilations: Sequence[int]
) -> Tensor | None:
    """Refuses what the two ops do not take; returns the labels without their history."""
    _checks.scores(op, "image", image, layout="(B, 3, H, W)")
    _checks.scores(op, "mask", mask)
    if image.shape[1] != 3:
        raise ValueError(f"{op}: image must be (B, 3, H, W), got shape {tuple(image.shape)}")
    if image.shape[0] != mask.shape[0]:
        raise ValueError(f"{op}: image and mask must have one batch size, got {image.shape[0]} and {mask.shape[0]}")
    if iterations < 1:
        raise ValueError(f"{op}: iterations must be at least 1, got {iterations!r}")
    if len(dilations) == 0 or min(dilations) < 1:
        raise ValueError(f"{op}: dilations must be one or more numbers of at least 1, got {tuple(dilations)!r}")
    if image_labels is not None:
        _checks.image_labels(op, image_labels, *mask.shape[:2])
        image_labels = image_labels.detach()
    _checks.same_device(op, image=image, mask=mask, image_labels=image_labels)
    return image_labels

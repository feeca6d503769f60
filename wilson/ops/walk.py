"""Scores that walk at random, and stop at edges (IRN)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks, _library, _registry, reference
from ._autograd import under_transform

__all__ = ["random_walk"]

WALK = "random_walk"
MOST_RADIUS = 8  # of the neighbourhoods that the kernels have room for


@_registry.raw("random_walk")
def _random_walk(scores: Tensor, edge: Tensor, radius: int, beta: float, steps: int) -> Tensor:
    _library.note_reference(WALK, scores)
    return reference.random_walk(scores, edge, radius=radius, beta=beta, steps=steps).contiguous()


@torch.library.register_fake(_random_walk)
def _(scores: Tensor, edge: Tensor, radius: int, beta: float, steps: int) -> Tensor:
    return scores.new_empty(scores.shape, dtype=reference.accumulate(scores, edge))


@_registry.op("scores that walk at random and stop at edges")
def random_walk(scores: Tensor, edge: Tensor, *, radius: int = 5, beta: float = 10.0, steps: int = 256) -> Tensor:
    """Random walk of class scores to pixels that no edge lies in between: every pixel becomes a mean around it.

    With x = scores (1 - edge) to begin with, `steps` times for every pixel j and those i less than `radius` away::

        x_j <- sum_i a_ij^beta x_i / sum_k a_kj^beta      a_ij = 1 - max of edge on the line from i to j      a_jj = 1

    The line's pixels are those less than 1 away from it in the box around both ends. Ahn et al., "Weakly Supervised
    Learning of Instance Segmentation with Inter-pixel Relations" (CVPR 2019). The published code builds the matrix of
    all pairs of pixels and squares it 8 times; these 256 steps along the links that there are give the same to
    rounding.

    Args:
        scores: `(B, C, H, W)`, floating.
        edge: strength of an edge at each pixel `(B, H, W)` or `(B, 1, H, W)`, floating, in 0..1; the values are not
            checked, and those above 1 part pixels as 1 does.
        radius: neighbours are less than so many pixels away, 1 to 8; a pixel has 68 with 5 and none with 1.
        beta: the higher, the more weak edges part pixels, > 0.
        steps: of the walk, >= 0.

    Returns:
        The scores after the walk `(B, C, H, W)`, float64 if an input is, else float32.

    Raises:
        TypeError: scores or edge is not floating.
        ValueError: the edge has not the batch, height and width of the scores, or has several channels; the radius is
            outside 1..8, beta is not positive, or the number of steps is negative.

    Not differentiable.
    """
    _checks.scores(WALK, "scores", scores)
    _checks.tensor(WALK, "edge", edge)
    if edge.dim() == 3:
        edge = edge.unsqueeze(1)
    _checks.scores(WALK, "edge", edge, layout="(B, H, W) or (B, 1, H, W)")
    if edge.shape[1] != 1:
        raise ValueError(f"{WALK}: edge must be (B, H, W) or (B, 1, H, W), got shape {tuple(edge.shape)}")
    _checks.same_grid(WALK, "edge", edge, "scores", scores)
    if not 1 <= radius <= MOST_RADIUS:
        raise ValueError(f"{WALK}: radius must be within 1..{MOST_RADIUS}, got {radius!r}")
    _checks.positive(WALK, beta=beta)
    if steps < 0:
        raise ValueError(f"{WALK}: steps must be at least 0, got {steps!r}")
    _checks.same_device(WALK, scores=scores, edge=edge)
    if under_transform():
        return reference.random_walk(scores, edge, radius=radius, beta=beta, steps=steps)
    return _random_walk(scores.detach(), edge.detach(), int(radius), float(beta), int(steps))

"""The ops of :mod:`wilson.ops` as modules.

A module holds the options of its op as keyword arguments, with the op's defaults. Its `forward` takes the tensors, with
the op's names. It has no parameters and no buffers, so that a state dict is the same with and without it. What an
option means, and what is refused, stands at the op.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import Tensor, nn

from . import ops

__all__ = [
    "PAMR",
    "PAR",
    "BalancedCrossEntropyLoss",
    "ConfidentLabels",
    "LocalizationPriorLoss",
    "MergePseudoLabels",
    "NGWPFocalPool",
    "OneVersusRest",
    "PriorLoss",
    "PseudoLabelLoss",
    "RandomWalk",
    "SoftMarginLoss",
    "UpsampledArgmax",
    "UpsampledCrossEntropyLoss",
    "UpsampledSoftMarginLoss",
]  # fmt: skip


class _Op(nn.Module):
    """A module whose attributes of its own are the keyword arguments that it was made with."""

    def __init__(self) -> None:
        super().__init__()

    def extra_repr(self) -> str:
        options = list(inspect.signature(type(self)).parameters)
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)


class NGWPFocalPool(_Op):
    """:func:`wilson.ops.ngwp_focal_pool`: one score per image and class, from the localizer's scores.

    Args:
        eps: added to the mass of a class, > 0.
        gamma: power of the focal penalty, >= 1.
        lam: added inside the logarithm of the penalty, > 0.
        focal: add the focal penalty.
    """

    def __init__(self, *, eps: float = 1.0, gamma: float = 3.0, lam: float = 0.01, focal: bool = True) -> None:
        super().__init__()
        self.eps, self.gamma, self.lam, self.focal = eps, gamma, lam, focal

    def forward(self, scores: Tensor) -> Tensor:
        """Scores `(B, C, H, W)` to pooled scores `(B, C)`."""
        return ops.ngwp_focal_pool(scores, eps=self.eps, gamma=self.gamma, lam=self.lam, focal=self.focal)


class LocalizationPriorLoss(_Op):
    """:func:`wilson.ops.localization_prior_loss`: the localizer against the old model's output."""

    def forward(self, scores: Tensor, old_logits: Tensor) -> Tensor:
        """Scores `(B, C, H, W)` and old logits `(B, O, H, W)` to a scalar."""
        return ops.localization_prior_loss(scores, old_logits)


class SoftMarginLoss(_Op):
    """:func:`wilson.ops.soft_margin_loss`: binary cross-entropy with soft targets and image weights.

    The targets are dense, in 0..1; `torch.nn.SoftMarginLoss` takes targets of -1 and 1.
    """

    def forward(self, logits: Tensor, targets: Tensor, *, image_weight: Tensor | None = None) -> Tensor:
        """Logits and targets `(B, C, H, W)`, weights `(B,)` or None, to a scalar."""
        return ops.soft_margin_loss(logits, targets, image_weight=image_weight)


class _Merging(_Op):
    """What the two modules of merged pseudo-labels are made with."""

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        background: float | str = "min",
        old_yields: bool = False,
        prior_weight: float | None = None,
    ) -> None:
        super().__init__()
        self.alpha, self.background, self.old_yields, self.prior_weight = alpha, background, old_yields, prior_weight


class MergePseudoLabels(_Merging):
    """:func:`wilson.ops.merge_pseudo_labels`: the localizer's pseudo-labels merged with the old model's output.

    Args:
        alpha: weight of the hard labels, 0..1.
        background: "min", or the weight of the localizer's background, 0..1.
        old_yields: whether old classes give way where the localizer sees a new one.
        prior_weight: weight of the prior, 0..1; with it `forward` needs a prior.
    """

    def forward(
        self, localizer_scores: Tensor, old_logits: Tensor, image_labels: Tensor, *, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scores `(B, C, H, W)`, old logits `(B, O, H, W)`, labels `(B, C-1)` to targets and image weights `(B,)`."""
        return ops.merge_pseudo_labels(
            localizer_scores, old_logits, image_labels,
            alpha=self.alpha, background=self.background, old_yields=self.old_yields,
            prior=prior, prior_weight=self.prior_weight,
        )  # fmt: skip


class PseudoLabelLoss(_Merging):
    """:func:`wilson.ops.pseudo_label_loss`: :class:`SoftMarginLoss` against :class:`MergePseudoLabels`, in one op.

    Args:
        alpha: weight of the hard labels, 0..1.
        background: "min", or the weight of the localizer's background, 0..1.
        old_yields: whether old classes give way where the localizer sees a new one.
        prior_weight: weight of the prior, 0..1; with it `forward` needs a prior.
    """

    def forward(
        self,
        logits: Tensor,
        localizer_scores: Tensor,
        old_logits: Tensor,
        image_labels: Tensor,
        *,
        prior: Tensor | None = None,
    ) -> Tensor:
        """Logits and scores `(B, C, H, W)`, old logits `(B, O, H, W)`, labels `(B, C-1)` to a scalar."""
        return ops.pseudo_label_loss(
            logits, localizer_scores, old_logits, image_labels,
            alpha=self.alpha, background=self.background, old_yields=self.old_yields,
            prior=prior, prior_weight=self.prior_weight,
        )  # fmt: skip


class PAMR(_Op):
    """:func:`wilson.ops.pamr`: masks refined by the image's colours.

    Args:
        iterations: number of passes, >= 1.
        dilations: distances of the neighbours in pixels, each >= 1.
    """

    def __init__(self, *, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12)) -> None:
        super().__init__()
        self.iterations, self.dilations = iterations, tuple(dilations)

    def forward(self, image: Tensor, mask: Tensor, *, image_labels: Tensor | None = None) -> Tensor:
        """Image `(B, 3, H, W)`, mask `(B, C, h, w)`, labels `(B, C-1)` or None, to a mask `(B, C, H, W)`."""
        return ops.pamr(
            image, mask, image_labels=image_labels, iterations=self.iterations, dilations=self.dilations
        )  # fmt: skip


class PAR(_Op):
    """:func:`wilson.ops.par`: masks refined by colours and distances.

    Args:
        iterations: number of passes, >= 1.
        dilations: distances of the neighbours in pixels, each >= 1.
    """

    def __init__(self, *, iterations: int = 10, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24)) -> None:
        super().__init__()
        self.iterations, self.dilations = iterations, tuple(dilations)

    def forward(self, image: Tensor, mask: Tensor, *, image_labels: Tensor | None = None) -> Tensor:
        """Image `(B, 3, H, W)`, mask `(B, C, h, w)`, labels `(B, C-1)` or None, to a mask `(B, C, H, W)`."""
        return ops.par(
            image, mask, image_labels=image_labels, iterations=self.iterations, dilations=self.dilations
        )  # fmt: skip


class RandomWalk(_Op):
    """:func:`wilson.ops.random_walk`: scores that walk at random and stop at edges.

    Args:
        radius: of the neighbourhood in pixels, 1..8.
        beta: power of the affinities, > 0.
        steps: of the walk, >= 0.
    """

    def __init__(self, *, radius: int = 5, beta: float = 10.0, steps: int = 256) -> None:
        super().__init__()
        self.radius, self.beta, self.steps = radius, beta, steps

    def forward(self, scores: Tensor, edge: Tensor) -> Tensor:
        """Scores `(B, C, H, W)` and edges `(B, H, W)` or `(B, 1, H, W)` in 0..1, to scores `(B, C, H, W)`."""
        return ops.random_walk(scores, edge, radius=self.radius, beta=self.beta, steps=self.steps)


class ConfidentLabels(_Op):
    """:func:`wilson.ops.confident_labels`: pixels that exactly one class claims.

    Args:
        background_ratio: share of the peak for the background.
        class_ratio: share of the peak for the other classes.
        floor: least threshold, in units of the scores.
        ignore_index: label of unclaimed pixels, outside 0..C-1.
    """

    def __init__(
        self,
        *,
        background_ratio: float = 0.7,
        class_ratio: float = 0.6,
        floor: float = 0.2,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        self.background_ratio, self.class_ratio, self.floor = background_ratio, class_ratio, floor
        self.ignore_index = ignore_index

    def forward(self, refined: Tensor, image_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Scores `(B, C, H, W)`, labels `(B, C-1)` to a label map `(B, H, W)` and counts `(B, C)`."""
        return ops.confident_labels(
            refined, image_labels,
            background_ratio=self.background_ratio, class_ratio=self.class_ratio, floor=self.floor,
            ignore_index=self.ignore_index,
        )  # fmt: skip


class BalancedCrossEntropyLoss(_Op):
    """:func:`wilson.ops.balanced_cross_entropy`: cross-entropy on confident pixels, rarer classes weighing more.

    Args:
        ignore_index: the label of pixels to skip, outside 0..C-1.
    """

    def __init__(self, *, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, scores: Tensor, labels: Tensor, counts: Tensor, image_labels: Tensor) -> Tensor:
        """Scores `(B, C, H, W)`, label map `(B, H, W)`, counts `(B, C)`, labels `(B, C-1)` to a scalar."""
        return ops.balanced_cross_entropy(scores, labels, counts, image_labels, ignore_index=self.ignore_index)


class UpsampledSoftMarginLoss(_Op):
    """:func:`wilson.ops.upsampled_soft_margin_loss`: the base step's loss, on logits at feature resolution.

    Args:
        ignore_index: a label to skip.
        align_corners: how logits are upsampled.
    """

    def __init__(self, *, ignore_index: int = 255, align_corners: bool = False) -> None:
        super().__init__()
        self.ignore_index, self.align_corners = ignore_index, align_corners

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits `(B, C, H, W)`, label map `(B, H', W')` to a scalar."""
        return ops.upsampled_soft_margin_loss(
            logits, labels, ignore_index=self.ignore_index, align_corners=self.align_corners
        )


class UpsampledCrossEntropyLoss(_Op):
    """:func:`wilson.ops.upsampled_cross_entropy`: softmax cross-entropy, on logits at feature resolution.

    Stands for `torch.nn.functional.interpolate` and `torch.nn.CrossEntropyLoss`, whose `ignore_index` is -100.

    Args:
        ignore_index: a label to skip.
        align_corners: how logits are upsampled.
    """

    def __init__(self, *, ignore_index: int = 255, align_corners: bool = False) -> None:
        super().__init__()
        self.ignore_index, self.align_corners = ignore_index, align_corners

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits `(B, C, H, W)`, label map `(B, H', W')` to a scalar."""
        return ops.upsampled_cross_entropy(
            logits, labels, ignore_index=self.ignore_index, align_corners=self.align_corners
        )


class UpsampledArgmax(_Op):
    """:func:`wilson.ops.upsampled_argmax`: predicted classes at the image's size.

    Args:
        align_corners: how logits are upsampled.
    """

    def __init__(self, *, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners

    def forward(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits `(B, C, H, W)` and (H', W') to classes `(B, H', W')`."""
        return ops.upsampled_argmax(logits, size, align_corners=self.align_corners)


class OneVersusRest(_Op):
    """:func:`wilson.ops.one_versus_rest`: logits whose sigmoid is the softmax."""

    def forward(self, logits: Tensor) -> Tensor:
        """Logits `(B, C, H, W)` to logits of the same shape."""
        return ops.one_versus_rest(logits)


class PriorLoss(_Op):
    """:func:`wilson.ops.prior_loss`: new classes' scores against maps or names from outside."""

    def forward(
        self,
        scores: Tensor,
        image_labels: Tensor,
        *,
        maps: Tensor | None = None,
        similarity: Tensor | None = None,
        old_logits: Tensor | None = None,
    ) -> Tensor:
        """Scores `(B, C, H, W)`, labels `(B, L)`, and a source as for the op, to a scalar."""
        return ops.prior_loss(scores, image_labels, maps=maps, similarity=similarity, old_logits=old_logits)

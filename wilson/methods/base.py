"""What methods share: their configuration, and the parts of a step that learns from image-level labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wilson import ops
from wilson.models import Localizer, Segmenter


class Batch(TypedDict, total=False):
    """What a method sees of a batch."""

    image: Tensor  # (B, 3, H, W), normalised
    rgb: Tensor  # (B, 3, H, W), the same in [0, 1]
    labels: Tensor  # (B, C-1), image-level labels without background
    mask: Tensor  # (B, H, W), output channels; only with dense labels


@dataclass(frozen=True)
class LossConfig:
    """Weights and settings of the loss terms; a weight of 0 switches a term off."""

    mode: Literal["official", "paper"] = "official"
    """official computes what the published code does, paper what the equations say: eps 1e-5, ENC summed over channels,
    pseudo-labels not gated by the image-level labels, no least threshold in SSS."""
    cls: float = 1.0
    """Classification: pooled localizer scores against image-level labels (Eq. 3)."""
    loc: float = 1.0
    """Localization prior: localizer against the old model (Eq. 4)."""
    enc: float = 1.0
    """Encoder: features against the old model's."""
    sss: float = 1.0
    """Self-supervised segmentation of the localizer."""
    seg: float = 1.0
    """Segmentation against the merged pseudo-labels (Eq. 7)."""
    alpha: float = 0.5
    """Share of hard labels in the pseudo-labels, 0..1 (COCO-to-VOC: 0.9)."""
    background: float | None = None
    """Weight of the localizer in the merged background, 0..1; None for the minimum of both."""
    eps: float | None = None
    """Added to the mass of a class in the pooling; None for that of the mode, 1 or 1e-5."""
    gamma: float = 3.0
    """Power of the focal penalty."""
    lam: float = 0.01
    """Added to the share of a class in the focal penalty."""
    focal: bool = True
    """Add the focal penalty to the pooled scores."""
    pamr_iterations: int = 10
    """Iterations of PAMR."""
    pamr_dilations: tuple[int, ...] = (1, 2, 4, 8, 12)
    """Distances of PAMR's neighbours, in feature pixels."""


class Pseudo(NamedTuple):
    """What the localizer and the model say of a batch."""

    logits: Tensor  # s (B, C, h, w)
    features: Tensor
    scores: Tensor  # z (B, C, h, w), gradients flow
    eval_scores: Tensor  # z of the eval-mode pass before, detached


class Method(nn.Module):
    """A batch and the epoch in, named and weighted loss terms out; the total is their sum."""

    model: Segmenter

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        raise NotImplementedError

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """Encoder, decoder, classifiers and, where there is one, localizer."""
        model = self.model
        return {
            "encoder": model.backbone.parameters(),
            "decoder": model.head.parameters(),
            "classifiers": model.classifiers.parameters(),
        }


class WeaklySupervised(Method):
    """A step that learns new classes from image-level labels, with a localizer.

    Args:
        model: the model in training, with all C classes.
        localizer: with C classes.
        old_classes: O, background included.
        config: weights and settings of the terms.
        warmup: epochs before the segmentation model learns from pseudo-labels.
        all_labels: the image-level labels tell the old classes, too.
    """

    def __init__(
        self,
        model: Segmenter,
        localizer: Localizer,
        old_classes: int,
        config: LossConfig,
        warmup: int,
        all_labels: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.localizer = model, localizer
        self.old_classes, self.config, self.warmup, self.all_labels = old_classes, config, warmup, all_labels

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        return {**super().parameter_groups(), "localizer": self.localizer.parameters()}

    def look(self, batch: Batch) -> Pseudo:
        """Run the model, and the localizer twice: in eval mode first, since training moves its statistics."""
        logits, features = self.model(batch["image"])
        eval_scores = self.localizer.eval_scores(features)
        return Pseudo(logits, features, self.localizer(features), eval_scores)

    @property
    def paper(self) -> bool:
        """Whether the equations are followed where the published code departs from them."""
        return self.config.mode == "paper"

    def classification(self, scores: Tensor, labels: Tensor) -> Tensor:
        """CLS (Eq. 3): BCE between pooled scores and labels of the new classes; of all classes with all_labels."""
        c = self.config
        eps = (1e-5 if self.paper else 1.0) if c.eps is None else c.eps
        pooled = ops.ngwp_focal_pool(scores, eps=eps, gamma=c.gamma, lam=c.lam, focal=c.focal)
        old = 1 if self.all_labels else self.old_classes
        return F.binary_cross_entropy_with_logits(pooled[:, old:], labels[:, old - 1 :].to(pooled.dtype))

    def self_supervision(self, pseudo: Pseudo, batch: Batch) -> Tensor:
        """SSS: the localizer learns from its own confident pixels, refined by the image."""
        c = self.config
        image = F.interpolate(batch["rgb"], size=pseudo.scores.shape[2:], mode="bilinear", align_corners=True)
        refined = ops.pamr(
            image, pseudo.eval_scores.softmax(1), iterations=c.pamr_iterations, dilations=c.pamr_dilations
        )
        threshold = {"floor": 0.0} if self.paper else {}
        labels, counts = ops.confident_labels(refined, batch["labels"], ignore_index=-1, **threshold)
        return ops.balanced_cross_entropy(pseudo.scores, labels, counts, batch["labels"], ignore_index=-1)

    def weighted(self, **terms: Tensor) -> dict[str, Tensor]:
        return {name: getattr(self.config, name) * term for name, term in terms.items()}

    @torch.no_grad()
    def explain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the localizer sees and what the model is taught, for pictures.

        Returns:
            The localizer's probabilities (B, C, h, w) and the pseudo-labels as classes (B, h, w).
        """
        raise NotImplementedError

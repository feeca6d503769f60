"""What methods share: their configuration, and the parts of a step that learns from image-level labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wilson import distributed, ops
from wilson.models import Localizer, Segmenter
from wilson.models.segmenter import Prediction
from wilson.ops.pseudo_labels import pseudo_label_loss_and_factor

Prior: TypeAlias = Literal["loc", "softmax", "fixed", "background", "none"]
Pooling: TypeAlias = Literal["ngwp_focal", "ngwp", "gap"]


class Batch(TypedDict, total=False):
    """What a method sees of a batch."""

    image: Tensor  # (B, 3, H, W), normalised
    rgb: Tensor  # (B, 3, H, W), the same in [0, 1]
    labels: Tensor  # (B, C-1), image-level labels without background
    mask: Tensor  # (B, H, W), output channels, 255 to leave out; only with dense labels
    saliency: Tensor  # (B, H, W), in [0, 1]; only where a folder of saliency maps is given


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
    prior: Prior = "loc"
    """Localization prior: loc (Eq. 4); softmax, cross-entropy of the softmax over all classes against the old model's
    softmax; fixed, the old model's logits in the place of the localizer's scores of old classes; background, a
    background score of 1 at every pixel; none. With the last three there is no LOC term."""
    merge: bool = True
    """Take old classes from the old model in the pseudo-labels; without, all classes from the localizer, only the new
    ones gated by the image-level labels."""
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
    pooling: Pooling = "ngwp_focal"
    """How CLS pools scores: by their softmax with a focal penalty (Eq. 1, 2), without it, or by the plain mean."""
    pamr_iterations: int = 10
    """Iterations of PAMR."""
    pamr_dilations: tuple[int, ...] = (1, 2, 4, 8, 12)
    """Distances of PAMR's neighbours, in feature pixels."""
    distillation: float = 1.0
    """Factor on the published weights of what lwf, lwf-mc, ilt, mib and plop distil from the old model."""


class Pseudo(NamedTuple):
    """What the localizer and the model say of a batch."""

    logits: Tensor  # s (B, C, h, w)
    features: Tensor
    scores: Tensor  # z (B, C, h, w), gradients flow
    eval_scores: Tensor  # z of the eval-mode pass before, detached
    old: Prediction | None = None  # of the model before this step


@dataclass(frozen=True)
class Settings:
    """What a step tells its method besides the models."""

    losses: LossConfig = field(default_factory=LossConfig)
    warmup: int = 0  # epochs before the segmentation model learns from pseudo-labels
    all_labels: bool = False  # the image-level labels tell the old classes, too
    localizer_channels: int = 256


class Method(nn.Module):
    """A batch and the epoch in, named and weighted loss terms out; the total is their sum.

    Args:
        model: the model in training, with all C classes.
        old: the model before this step; None in a base step.
        settings: of the run.
    """

    pixel_supervised: ClassVar[bool] = False  # learns from the masks of the step, not from image-level labels
    softmax: ClassVar[bool] = False  # its classifiers are one softmax, so that the base step is trained by one, too
    remembers: ClassVar[bool] = False  # looks at the old model, which is kept: frozen, in eval mode

    def __init__(self, model: Segmenter, old: Segmenter | None = None, settings: Settings | None = None) -> None:
        super().__init__()
        settings = settings or Settings()
        self.model, self.config, self.warmup = model, settings.losses, settings.warmup
        self.old_classes = old.classes if old is not None else 1  # O, background included
        if self.remembers:
            assert old is not None
            self.old = old.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Method:
        super().train(mode)
        if self.remembers:
            self.old.eval()
        return self

    @torch.no_grad()
    def remember(self, batch: Batch) -> Prediction:
        """What the model before this step says of a batch."""
        return self.old(batch["image"])

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Look at the step's training images once before the first epoch; most methods have no need to."""

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
    """A step that learns new classes from image-level labels, with a localizer; arguments as of :class:`Method`."""

    def __init__(self, model: Segmenter, old: Segmenter, settings: Settings | None = None) -> None:
        super().__init__(model, old, settings)
        settings = settings or Settings()
        self.all_labels = settings.all_labels
        self.localizer = Localizer(model.backbone.channels, settings.localizer_channels, model.classes)

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        return {**super().parameter_groups(), "localizer": self.localizer.parameters()}

    def look(self, batch: Batch) -> Pseudo:
        """Run the model, and the localizer twice: in eval mode first, since training moves its statistics."""
        logits, features = self.model(batch["image"])
        eval_scores = self.localizer.eval_scores(features)
        return Pseudo(logits, features, self.localizer(features), eval_scores)

    def probabilities(self, image: Tensor) -> Tensor:
        """What the localizer sees in images (B, C, h, w), in the method's mode and whatever classes they hold."""
        return self.localizer(self.model(image).features).softmax(1)

    @property
    def paper(self) -> bool:
        """Whether the equations are followed where the published code departs from them."""
        return self.config.mode == "paper"

    def classification(self, scores: Tensor, labels: Tensor) -> Tensor:
        """CLS (Eq. 3): BCE between pooled scores and labels of the new classes; of all classes with all_labels."""
        pooled = self.pooled(scores)
        old = 1 if self.all_labels else self.old_classes
        return F.binary_cross_entropy_with_logits(pooled[:, old:], labels[:, old - 1 :].to(pooled.dtype))

    def pooled(self, scores: Tensor) -> Tensor:
        """One score per image and class (B, C)."""
        c = self.config
        if c.pooling == "gap":
            return scores.mean((2, 3))
        eps = (1e-5 if self.paper else 1.0) if c.eps is None else c.eps
        return ops.ngwp_focal_pool(scores, eps=eps, gamma=c.gamma, lam=c.lam, focal=c.pooling == "ngwp_focal")

    def self_supervision(self, scores: Tensor, eval_scores: Tensor, batch: Batch) -> Tensor:
        """SSS: the localizer learns from its own confident pixels, refined by the image."""
        c = self.config
        image = F.interpolate(batch["rgb"], size=scores.shape[2:], mode="bilinear", align_corners=True)
        refined = ops.pamr(image, eval_scores.softmax(1), iterations=c.pamr_iterations, dilations=c.pamr_dilations)
        threshold = {"floor": 0.0} if self.paper else {}
        labels, counts = ops.confident_labels(refined, batch["labels"], ignore_index=-1, **threshold)
        return ops.balanced_cross_entropy(scores, labels, counts, batch["labels"], ignore_index=-1)

    def pseudo_label_loss(
        self, logits: Tensor, scores: Tensor, old_logits: Tensor, labels: Tensor, **settings: Any
    ) -> Tensor:
        """SEG (Eq. 7), its weighted mean over images taken over those of all processes."""
        loss, factor = pseudo_label_loss_and_factor(logits, scores, old_logits, labels, **settings)
        return distributed.global_mean(loss, (factor > 0).sum(), len(factor), ops.reference.IMAGE_WEIGHT_EPS)

    def weighted(self, **terms: Tensor) -> dict[str, Tensor]:
        return {name: getattr(self.config, name) * term for name, term in terms.items()}

    @torch.no_grad()
    def explain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the localizer sees and what the model is taught, for pictures.

        Returns:
            The localizer's probabilities (B, C, h, w) and the pseudo-labels as classes (B, h, w).
        """
        raise NotImplementedError

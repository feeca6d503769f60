"""What methods share: their configuration, and the parts of a step that learns from image-level labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wilson import distributed, ops
from wilson.config import LossConfig
from wilson.data.loading import Batch
from wilson.models import Localizer, Prediction, SegmentationModel
from wilson.ops.internal import IMAGE_WEIGHT_EPS, loss_and_factor


@dataclass(frozen=True)
class Seen:
    """What model and localizer say of a batch."""

    logits: Tensor  # s (B, C, h, w)
    features: Tensor
    scores: Tensor  # z (B, C, h, w), gradients flow
    eval_scores: Tensor  # z of the eval-mode pass before, detached


@dataclass(frozen=True)
class SeenAndRemembered(Seen):
    """The same, beside what the model before this step says."""

    old: Prediction


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

    def __init__(
        self, model: SegmentationModel, old: SegmentationModel | None = None, settings: Settings | None = None
    ) -> None:
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
        return self.model.parameter_groups()


class WeaklySupervised(Method):
    """A step that learns new classes from image-level labels, with a localizer; arguments as of :class:`Method`."""

    def __init__(self, model: SegmentationModel, old: SegmentationModel, settings: Settings | None = None) -> None:
        super().__init__(model, old, settings)
        settings = settings or Settings()
        self.all_labels = settings.all_labels
        self.localizer = Localizer(model.feature_channels, settings.localizer_channels, model.classes)

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        return {**super().parameter_groups(), "localizer": self.localizer.parameters()}

    def look(self, batch: Batch) -> Seen:
        """Run the model, and the localizer twice: in eval mode first, since training moves its statistics."""
        logits, features = self.model(batch["image"])
        eval_scores = self.localizer.eval_scores(features)
        return Seen(logits, features, self.localizer(features), eval_scores)

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
        loss, factor = loss_and_factor(logits, scores, old_logits, labels, **settings)
        return distributed.global_mean(loss, (factor > 0).sum(), len(factor), IMAGE_WEIGHT_EPS)

    def weighted(self, **terms: Tensor) -> dict[str, Tensor]:
        return {name: getattr(self.config, name) * term for name, term in terms.items()}

    @torch.no_grad()
    def explain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the localizer sees and what the model is taught, for pictures.

        Returns:
            The localizer's probabilities (B, C, h, w) and the pseudo-labels as classes (B, h, w).
        """
        raise NotImplementedError

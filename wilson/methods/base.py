"""What methods share: their settings, and the parts of a step that learns from image-level labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wilson import distributed, ops
from wilson.config import LossConfig
from wilson.data.loading import Batch
from wilson.models import Localizer, Prediction, SegmentationModel
from wilson.ops.pseudo_labels import pseudo_label_loss_and_factor


@dataclass(frozen=True)
class Seen:
    """The outputs of model and localizer for a batch."""

    logits: Tensor  # s (B, C, h, w)
    features: Tensor  # (B, feature_channels, h, w)
    scores: Tensor  # z (B, C, h, w), with gradients
    eval_scores: Tensor  # z (B, C, h, w) of the localizer in eval mode, detached


@dataclass(frozen=True)
class SeenAndRemembered(Seen):
    """The same, with the output of the model before this step."""

    old: Prediction
    maps: Tensor | None = None  # (B, N, h', w') of the new classes in 0..1, where the batch has them
    regions: Tensor | None = None  # (B, H, W) ids, where the batch has them

    def first(self, images: int) -> SeenAndRemembered:
        """The outputs for the first images of the batch."""
        old = Prediction(self.old.logits[:images], self.old.features[:images])
        maps, regions = (None if t is None else t[:images] for t in (self.maps, self.regions))
        logits, features, scores, eval_scores = (
            t[:images] for t in (self.logits, self.features, self.scores, self.eval_scores)
        )
        return SeenAndRemembered(logits, features, scores, eval_scores, old, maps, regions)


@dataclass(frozen=True)
class Settings:
    """What a step tells its method besides the models."""

    losses: LossConfig = field(default_factory=LossConfig)
    warmup: int = 0  # epochs before the segmentation model learns from pseudo-labels
    all_labels: bool = False  # image-level labels tell the old classes, too
    localizer_channels: int = 256
    similarity: Tensor | None = None  # (C, C) between the names of all classes, for rasp
    replayed: float = 0.0  # share of a batch that replayed images take


class Method(nn.Module):
    """A module that turns a batch and the epoch into named, weighted loss terms; the total loss is their sum.

    Args:
        model: the model in training, with all C classes.
        old: the model before this step; None in a base step.
        settings: of the run.
    """

    pixel_supervised: ClassVar[bool] = False  # learns from the masks of the step, not from image-level labels
    softmax: ClassVar[bool] = False  # trains one softmax over all classes, and so does the base step before it
    remembers: ClassVar[bool] = False  # keeps the old model, frozen and in eval mode
    inner: ClassVar[bool] = False  # reads the outputs of inner modules through hooks, which torch.compile does not see

    def __init__(
        self, model: SegmentationModel, old: SegmentationModel | None = None, settings: Settings | None = None
    ) -> None:
        super().__init__()
        settings = settings or Settings()
        self.model, self.config, self.warmup = model, settings.losses, settings.warmup
        self.old_classes = old.classes if old is not None else 1  # O, background included
        if self.remembers:
            if old is None:
                raise ValueError(f"{type(self).__name__} needs the model before this step, got old=None")
            self.old = old.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Method:
        """Set the mode of all modules but the old model, which stays in eval mode."""
        super().train(mode)
        if self.remembers:
            self.old.eval()
        return self

    @torch.no_grad()
    def remember(self, batch: Batch) -> Prediction:
        """The output of the model before this step for a batch, without gradient."""
        return self.old(batch["image"])

    def odds(self, logits: Tensor) -> Tensor:
        """The logits whose sigmoids are the model's probabilities, old model and new one alike, for losses of sigmoids.

        A model that was trained by softmax cross-entropy has one-versus-rest logits, see `ops.one_versus_rest`.
        """
        return ops.one_versus_rest(logits) if self.model.softmax else logits

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Look at the step's training images once, before the first epoch; most methods do nothing here."""

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """Compute the weighted loss terms of a batch, scalars by name; `epoch` counts from 0."""
        raise NotImplementedError

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """The parameters of encoder, decoder, classifiers and, if there is one, localizer."""
        return self.model.parameter_groups()

    def learning(self, epoch: int) -> Iterable[nn.Parameter]:
        """The parameters in training in this epoch, with or without a gradient; weight decay applies to all of them."""
        return chain.from_iterable(self.parameter_groups().values())


class WeaklySupervised(Method):
    """A method that learns new classes from image-level labels, with a localizer; arguments as for :class:`Method`."""

    def __init__(self, model: SegmentationModel, old: SegmentationModel, settings: Settings | None = None) -> None:
        super().__init__(model, old, settings)
        settings = settings or Settings()
        self.all_labels = settings.all_labels
        self.localizer = Localizer(model.feature_channels, settings.localizer_channels, model.classes)

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        return {**super().parameter_groups(), "localizer": self.localizer.parameters()}

    def look(self, batch: Batch) -> Seen:
        """Run the model, then the localizer twice, first in eval mode, because training mode moves its statistics."""
        logits, features = self.model(batch["image"])
        eval_scores = self.localizer.eval_scores(features)
        return Seen(logits, features, self.localizer(features), eval_scores)

    def probabilities(self, image: Tensor) -> Tensor:
        """The localizer's probabilities of all classes, whether the images hold them or not, in the current mode.

        Args:
            image: normalised, (B, 3, H, W).

        Returns:
            Probabilities (B, C, h, w).
        """
        return self.localizer(self.model(image).features).softmax(1)

    @property
    def paper(self) -> bool:
        """Whether to follow the equations where the published code departs from them."""
        return self.config.mode == "paper"

    @property
    def eps(self) -> float:
        """What the pooling adds to the mass of a class."""
        of_mode = 1e-5 if self.paper else 1.0
        return of_mode if self.config.eps is None else self.config.eps

    def classification(self, scores: Tensor, labels: Tensor) -> Tensor:
        """CLS (Eq. 3): BCE between pooled scores and labels of the new classes, with `all_labels` of all classes.

        Args:
            scores: z `(B, C, h, w)`.
            labels: `(B, C-1)`, image-level labels.

        Returns:
            A scalar, differentiable in `scores`.
        """
        return self.compared(self.pooled(scores), labels)

    def compared(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """CLS of scores that are pooled already, (B, C)."""
        old = 1 if self.all_labels else self.old_classes
        return F.binary_cross_entropy_with_logits(pooled[:, old:], labels[:, old - 1 :].to(pooled.dtype))

    def pooled(self, scores: Tensor) -> Tensor:
        """Pool scores (B, C, h, w) to one score per image and class (B, C)."""
        c = self.config
        if c.pooling == "gap":
            return scores.mean((2, 3))
        return ops.ngwp_focal_pool(scores, eps=self.eps, gamma=c.gamma, lam=c.lam, focal=c.pooling == "ngwp_focal")

    def self_supervision(self, scores: Tensor, eval_scores: Tensor, batch: Batch) -> Tensor:
        """SSS: the localizer learns from its own confident pixels, refined by the image's colours (PAMR).

        Args:
            scores: z `(B, C, h, w)`.
            eval_scores: z `(B, C, h, w)` in eval mode; the labels come from them.
            batch: gives the image and its labels.

        Returns:
            A scalar, differentiable in `scores`.
        """
        c = self.config
        image = F.interpolate(batch["rgb"], size=scores.shape[2:], mode="bilinear", align_corners=True)
        refined = ops.pamr(
            image,
            eval_scores.softmax(1),
            image_labels=batch["labels"],
            iterations=c.pamr_iterations,
            dilations=c.pamr_dilations,
        )
        threshold = {"floor": 0.0} if self.paper else {}
        labels, counts = ops.confident_labels(refined, batch["labels"], ignore_index=-1, **threshold)
        return ops.balanced_cross_entropy(scores, labels, counts, batch["labels"], ignore_index=-1)

    def pseudo_label_loss(
        self, logits: Tensor, scores: Tensor, old_logits: Tensor, labels: Tensor, **settings: Any
    ) -> Tensor:
        """SEG (Eq. 7), its weighted mean over images taken over all processes; see `ops.pseudo_label_loss`."""
        loss, factor = pseudo_label_loss_and_factor(logits, scores, old_logits, labels, **settings)
        return distributed.global_mean(loss, (factor > 0).sum(), len(factor), ops.reference.IMAGE_WEIGHT_EPS)

    def weighted(self, **terms: Tensor) -> dict[str, Tensor]:
        """Multiply each term by its weight in the configuration."""
        return {name: getattr(self.config, name) * term for name, term in terms.items()}

    @torch.no_grad()
    def explain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the localizer sees and what the model learns from, for pictures.

        Returns:
            The localizer's probabilities (B, C, h, w) and the pseudo-labels as classes (B, h, w).
        """
        raise NotImplementedError

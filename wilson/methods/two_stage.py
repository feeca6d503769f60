"""What the rivals cam, ss, eps and seam share: a frozen localizer makes the labels."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wilson import ops
from wilson.config import Pooling
from wilson.data.loading import Batch
from wilson.models import SegmentationModel

from .base import SeenAndRemembered, Settings, WeaklySupervised
from .upsampling import at_size_of

NEVER = -1e4  # a score with a softmax of 0, within the range of half precision
CERTAIN = 100.0  # a score with a softmax of 1 beside scores of 0


class TwoStage(WeaklySupervised):
    """A localizer with its own encoder learns for `warmup` epochs; then it is frozen and labels images for the model.

    In WILSON's tables, the rivals label all images offline. Here the frozen networks label the very crop that the model
    sees. Their encoder starts as the old model's, and old classes without labels get no score. As in WILSON's published
    code, the hard labels of background and new classes are merged with the old model's output (Eq. 6 with alpha 1), and
    SEG (Eq. 7) counts every image. The model learns from SEG alone, after the warm-up.
    """

    remembers: ClassVar[bool] = True
    pooling: ClassVar[Pooling] = "gap"

    def __init__(self, model: SegmentationModel, old: SegmentationModel, settings: Settings | None = None) -> None:
        super().__init__(model, old, settings)
        self.config = replace(self.config, pooling=self.pooling)
        self.encoder = deepcopy(model.encoder)

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        groups = super().parameter_groups()
        return {**groups, "encoder": [*groups["encoder"], *self.encoder.parameters()]}

    def learning(self, epoch: int) -> Iterable[nn.Parameter]:
        """Those of the localizer and its encoder in the warm-up, then the model's; the others rest."""
        if epoch < self.warmup:
            return chain(self.localizer.parameters(), self.encoder.parameters())
        return self.model.parameters()

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        if epoch < self.warmup:
            return self.learn_to_localize(batch, epoch)
        self.encoder.eval()
        with torch.no_grad():
            eval_scores = self.label(batch)
        targets = self.targets(eval_scores, self.remember(batch).logits, batch["labels"])
        return self.weighted(seg=ops.soft_margin_loss(self.odds(self.model(batch["image"]).logits), targets))

    def learn_to_localize(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The weighted loss terms of the localizer for a batch in the warm-up epochs."""
        return self.localization(*self.localize(batch), batch, epoch)

    def label(self, batch: Batch) -> Tensor:
        """What the frozen localizer, in eval mode, says of a batch: (B, C, h, w), as `confidence` takes it."""
        return self.visible(self.localizer.eval_scores(self.encoder(batch["image"])))

    def localization(self, scores: Tensor, eval_scores: Tensor, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The same from its scores."""
        return self.weighted(cls=self.classification(scores, batch["labels"]))

    def localize(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of the localizer in its current mode, and in eval mode: (B, C, h, w) each."""
        features = self.encoder(batch["image"])
        eval_scores = self.localizer.eval_scores(features)
        return self.visible(self.localizer(features)), self.visible(eval_scores)

    def probabilities(self, image: Tensor) -> Tensor:
        scores = self.visible(self.localizer(self.encoder(image)))
        return self.confidence(scores, torch.ones_like(scores[:, 1:, 0, 0]))

    def visible(self, scores: Tensor) -> Tensor:
        """The scores, with `NEVER` for old classes unless their labels are known."""
        if self.all_labels:
            return scores
        old = torch.full_like(scores[:, 1 : self.old_classes], NEVER)
        return torch.cat([scores[:, :1], old, scores[:, self.old_classes :]], 1)

    def confidence(self, eval_scores: Tensor, labels: Tensor) -> Tensor:
        """The localizer's confidence in every class (B, C, h, w); 0 for classes that the image does not hold."""
        probabilities = eval_scores.softmax(1)
        return torch.cat([probabilities[:, :1], probabilities[:, 1:] * labels[:, :, None, None]], 1)

    def targets(self, eval_scores: Tensor, old_logits: Tensor, labels: Tensor) -> Tensor:
        """The localizer's hard labels merged with the old model's output: targets (B, C, h, w)."""
        eval_scores = at_size_of(eval_scores, old_logits)
        hard = F.one_hot(self.confidence(eval_scores, labels).argmax(1), eval_scores.shape[1]).movedim(-1, 1)
        settings: dict[str, Any] = {"alpha": 1.0}
        settings["background"] = "min" if self.config.background is None else self.config.background
        return ops.merge_pseudo_labels(CERTAIN * hard.float(), self.odds(old_logits), labels, **settings)[0]

    def look(self, batch: Batch) -> SeenAndRemembered:
        logits, features = self.model(batch["image"])
        return SeenAndRemembered(logits, features, *self.localize(batch), self.remember(batch))

    @torch.no_grad()
    def explain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        seen = self.look(batch)
        confidence = self.confidence(seen.eval_scores, batch["labels"])
        return confidence, self.targets(seen.eval_scores, seen.old.logits, batch["labels"]).argmax(1)

"""Fine-tuning on the localizer's labels alone: what happens without the old model."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from wilson import ops
from wilson.data.loading import Batch

from .base import Seen, WeaklySupervised
from .upsampling import at_size_of


class Finetune(WeaklySupervised):
    """CLS and SSS from the start; after `warmup` epochs also SEG against the localizer's hard labels.

    The targets (alpha = 1) are 1 at the localizer's arg-max over the background and the image's new classes, and 0
    elsewhere. There is no LOC, no ENC, no merge and no old model.
    """

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        seen = self.look(batch)
        terms = {}
        if self.config.cls:
            terms["cls"] = self.classification(seen.scores, batch["labels"])
        if self.config.sss:
            terms["sss"] = self.self_supervision(seen.scores, seen.eval_scores, batch)
        if self.config.seg and epoch >= self.warmup:
            labels = self._hard_labels(seen, batch)
            terms["seg"] = self.pseudo_label_loss(self.odds(seen.logits), *labels, **self._settings)
        return self.weighted(**terms)

    # The background comes from the localizer alone, and labels of 0 gate the old classes away. With the background as
    # the only "old" class, the merge gives exactly the localizer's hard labels.
    _settings: ClassVar[dict[str, Any]] = {"alpha": 1.0, "background": 1.0}

    def _hard_labels(self, seen: Seen, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        labels = batch["labels"].clone()
        labels[:, : self.old_classes - 1] = 0
        scores = at_size_of(seen.eval_scores, seen.logits)
        return scores, scores[:, :1], labels

    @torch.no_grad()
    def explain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        seen = self.look(batch)
        targets, _ = ops.merge_pseudo_labels(*self._hard_labels(seen, batch), **self._settings)
        return seen.eval_scores.softmax(1), targets.argmax(1)

"""The WILSON step (Cermelli et al., CVPR 2022): new classes from image-level labels, without forgetting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wilson import ops
from wilson.models import Localizer, Segmenter

from .base import Batch, LossConfig, Pseudo, WeaklySupervised


class Wilson(WeaklySupervised):
    """CLS + LOC + ENC teach the localizer; after `warmup` epochs SSS refines it and SEG teaches the model.

    Args:
        model: the model in training, with all C classes.
        localizer: with C classes.
        old: the model before this step; frozen, in eval mode.
        config: weights and settings of the terms.
        warmup: epochs before SSS and SEG.
        all_labels: the image-level labels tell the old classes, too.
    """

    def __init__(
        self,
        model: Segmenter,
        localizer: Localizer,
        old: Segmenter,
        config: LossConfig,
        warmup: int,
        all_labels: bool = False,
    ) -> None:
        super().__init__(model, localizer, old.classes, config, warmup, all_labels)
        self.old = old.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Wilson:
        super().train(mode)
        self.old.eval()
        return self

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        c = self.config
        with torch.no_grad():
            old = self.old(batch["image"])
        pseudo = self.look(batch)
        terms = {}
        if c.cls:
            terms["cls"] = self.classification(pseudo.scores, batch["labels"])
        if c.loc:
            terms["loc"] = ops.localization_prior_loss(pseudo.scores, old.logits)
        if c.enc:
            channels = pseudo.features.shape[1] if self.paper else 1
            terms["enc"] = channels * F.mse_loss(pseudo.features, old.features)
        if c.sss and epoch >= self.warmup:
            terms["sss"] = self.self_supervision(pseudo, batch)
        if c.seg and epoch >= self.warmup:
            terms["seg"] = self.segmentation(pseudo, old.logits, batch["labels"])
        return self.weighted(**terms)

    def segmentation(self, pseudo: Pseudo, old_logits: Tensor, labels: Tensor) -> Tensor:
        """SEG (Eq. 7); in the paper's mode every image counts, whatever classes its hard labels hold."""
        if self.paper:
            return ops.soft_margin_loss(pseudo.logits, self.targets(pseudo, old_logits, labels))
        return ops.pseudo_label_loss(pseudo.logits, pseudo.eval_scores, old_logits, labels, **self._smoothing)

    def targets(self, pseudo: Pseudo, old_logits: Tensor, labels: Tensor) -> Tensor:
        """The merged pseudo-labels (Eq. 5, 6), in the paper's mode not gated by the image-level labels."""
        gate = torch.ones_like(labels) if self.paper else labels
        targets, _ = ops.merge_pseudo_labels(pseudo.eval_scores, old_logits, gate, **self._smoothing)
        return targets

    @property
    def _smoothing(self) -> dict[str, Any]:
        c = self.config
        return {"alpha": c.alpha, "background": "min" if c.background is None else c.background}

    @torch.no_grad()
    def explain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pseudo, old = self.look(batch), self.old(batch["image"])
        targets = self.targets(pseudo, old.logits, batch["labels"])
        return pseudo.eval_scores.softmax(1), targets.argmax(1)

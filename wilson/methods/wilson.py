"""The WILSON step (Cermelli et al., CVPR 2022): new classes from image-level labels, without forgetting."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from wilson import ops
from wilson.models import Localizer, Segmenter

from .base import Batch, LossConfig, WeaklySupervised


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
            terms["enc"] = F.mse_loss(pseudo.features, old.features)
        if c.sss and epoch >= self.warmup:
            terms["sss"] = self.self_supervision(pseudo, batch)
        if c.seg and epoch >= self.warmup:
            terms["seg"] = ops.pseudo_label_loss(
                pseudo.logits,
                pseudo.eval_scores,
                old.logits,
                batch["labels"],
                alpha=c.alpha,
                background=self.background,
            )
        return self.weighted(**terms)

    @property
    def background(self) -> float | str:
        return "min" if self.config.background is None else self.config.background

    @torch.no_grad()
    def explain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pseudo, old = self.look(batch), self.old(batch["image"])
        targets, _ = ops.merge_pseudo_labels(
            pseudo.eval_scores, old.logits, batch["labels"], alpha=self.config.alpha, background=self.background
        )
        return pseudo.eval_scores.softmax(1), targets.argmax(1)

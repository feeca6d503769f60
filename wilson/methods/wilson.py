"""The WILSON step (Cermelli et al., CVPR 2022): new classes from image-level labels, without forgetting."""

from __future__ import annotations

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
            terms["enc"] = F.mse_loss(pseudo.features, old.features)
        if c.sss and epoch >= self.warmup:
            terms["sss"] = self.self_supervision(pseudo, batch)
        if c.seg and epoch >= self.warmup:
            terms["seg"] = ops.pseudo_label_loss(*self._segmentation(pseudo, old.logits, batch), **self._smoothing)
        return self.weighted(**terms)

    @property
    def _smoothing(self) -> dict[str, float | str]:
        background = self.config.background
        return {"alpha": self.config.alpha, "background": "min" if background is None else background}

    @staticmethod
    def _segmentation(pseudo: Pseudo, old_logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return pseudo.logits, pseudo.eval_scores, old_logits, batch["labels"]

    @torch.no_grad()
    def explain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        pseudo = self.look(batch)
        _, *inputs = self._segmentation(pseudo, self.old(batch["image"]).logits, batch)
        targets, _ = ops.merge_pseudo_labels(*inputs, **self._smoothing)  # type: ignore[arg-type]
        return pseudo.eval_scores.softmax(1), targets.argmax(1)

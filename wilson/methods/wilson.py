"""The WILSON step (Cermelli et al., CVPR 2022): new classes from image-level labels, without forgetting."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from wilson import ops
from wilson.data.loading import Batch
from wilson.models import SegmentationModel

from .base import SeenAndRemembered, Settings, WeaklySupervised
from .regions import vote
from .upsampling import at_size_of


class Wilson(WeaklySupervised):
    """CLS + LOC + ENC teach the localizer; after `warmup` epochs SSS refines it and SEG teaches the model.

    CLS, SSS and ENC are computed on the map of the features, LOC and SEG on that of the logits. The localizer's scores
    are interpolated where a model of another library has finer logits than features.

    Maps of the new classes from outside (`batch["prior"]`) either teach the localizer, too, by binary cross-entropy
    where the image shows the class (`ops.prior_loss`), or are mixed into what SEG's pseudo-labels are made from
    (`ops.merge_pseudo_labels`).

    With regions of the images (`batch["regions"]`), each region votes for one class of the merged pseudo-labels, at the
    size of the image, and SEG is the base step's loss of what they voted for.

    Images of the base step that are replayed (those from `batch["own"]` on) add the base step's loss of their masks
    beside SEG, for background and old classes, with the weight of SEG. CLS, SSS and SEG are of the step's images alone.
    """

    remembers: ClassVar[bool] = True
    of_all: ClassVar[tuple[str, ...]] = ("loc", "enc")  # terms that are of replayed images, too

    def __init__(self, model: SegmentationModel, old: SegmentationModel, settings: Settings | None = None) -> None:
        super().__init__(model, old, settings)
        self.replayed = (settings or Settings()).replayed

    def look(self, batch: Batch) -> SeenAndRemembered:
        old = self.remember(batch)
        seen = super().look(batch)
        scores, eval_scores = (self.with_prior(z, old.logits) for z in (seen.scores, seen.eval_scores))
        maps, regions = batch.get("prior"), batch.get("regions")
        return SeenAndRemembered(seen.logits, seen.features, scores, eval_scores, old, maps, regions)

    def probabilities(self, image: Tensor) -> Tensor:
        scores = self.localizer(self.model(image).features)
        old_logits = self.old(image).logits if self.config.prior == "fixed" else scores
        return self.with_prior(scores, old_logits).softmax(1)

    def with_prior(self, scores: Tensor, old_logits: Tensor) -> Tensor:
        """The localizer's scores; the priors fixed and background replace some by the old model's logits or by 1."""
        if self.config.prior == "fixed":
            return torch.cat([at_size_of(old_logits, scores).to(scores.dtype), scores[:, self.old_classes :]], 1)
        if self.config.prior == "background":
            return torch.cat([torch.ones_like(scores[:, :1]), scores[:, 1:]], 1)
        return scores

    def forward(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        seen = self.look(batch)
        if "own" not in batch:
            return self.weighted(**self.terms(seen, seen, batch, epoch))
        own, images = batch["own"], len(seen.logits)
        of_step = {key: value[:own] for key, value in batch.items() if isinstance(value, Tensor)}
        terms = self.terms(seen, seen.first(own), of_step, epoch)  # type: ignore[arg-type]
        # The loop takes a term for the mean over this part's images; these are means over some of them.
        share = own / images / (1 - self.replayed)
        terms = {name: term if name in self.of_all else share * term for name, term in terms.items()}
        terms = self.weighted(**terms)
        if self.config.seg and epoch >= self.warmup:
            share = (images - own) / images / self.replayed
            terms["replay"] = self.config.seg * share * self.replay(seen.logits[own:], batch["mask"][own:])
        return terms

    def replay(self, logits: Tensor, masks: Tensor) -> Tensor:
        """The loss of the base step on the replayed images: old classes and background against their masks."""
        return ops.upsampled_soft_margin_loss(self.odds(logits)[:, : self.old_classes], masks)

    def terms(self, seen: SeenAndRemembered, of_step: SeenAndRemembered, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """The loss terms, before their weights.

        Args:
            seen: the outputs for all images, which LOC and ENC (`of_all`) are of.
            of_step: the same without replayed images.
            batch: the images of the step.
            epoch: from 0.
        """
        c = self.config
        terms = {}
        if c.cls:
            terms["cls"] = self.classified(of_step, batch["labels"])
        if c.loc and c.prior in ("loc", "softmax"):
            terms["loc"] = self.localization_prior(at_size_of(seen.scores, seen.old.logits), seen.old.logits)
        if c.maps and c.prior_use == "loss" and of_step.maps is not None:
            maps = at_size_of(of_step.maps, of_step.scores)
            terms["maps"] = ops.prior_loss(of_step.scores, batch["labels"], maps=maps)
        if c.enc:
            channels = seen.features.shape[1] if self.paper else 1
            terms["enc"] = channels * F.mse_loss(seen.features, seen.old.features)
        if c.sss and epoch >= self.warmup:
            terms["sss"] = self.self_supervision(of_step.scores, of_step.eval_scores, batch)
        if c.seg and epoch >= self.warmup:
            terms["seg"] = self.segmentation(of_step, batch["labels"])
        return terms

    def classified(self, seen: SeenAndRemembered, labels: Tensor) -> Tensor:
        """CLS (Eq. 3) of the localizer's scores."""
        return self.classification(seen.scores, labels)

    def localization_prior(self, scores: Tensor, old_logits: Tensor) -> Tensor:
        """LOC (Eq. 4), or cross-entropy between the old model's softmax and the localizer's over all classes."""
        if self.config.prior == "loc":
            return ops.localization_prior_loss(scores, self.odds(old_logits))
        new = scores.shape[1] - self.old_classes  # the old model gives these no probability
        return F.cross_entropy(scores, F.pad(old_logits.softmax(1), (0, 0, 0, 0, 0, new)))

    def segmentation(self, seen: SeenAndRemembered, labels: Tensor) -> Tensor:
        """SEG (Eq. 7); in the paper's mode, every image counts, whatever classes its hard labels hold."""
        if seen.regions is not None:
            return ops.upsampled_soft_margin_loss(self.odds(seen.logits), self.voted(seen, labels, seen.regions))
        if self.paper or not self.config.merge:
            return ops.soft_margin_loss(self.odds(seen.logits), self.targets(seen, labels))
        scores, old_logits = at_size_of(seen.eval_scores, seen.logits), self.odds(seen.old.logits)
        settings = self._smoothing(seen, labels)
        return self.pseudo_label_loss(self.odds(seen.logits), scores, old_logits, labels, **settings)

    @torch.no_grad()
    def voted(self, seen: SeenAndRemembered, labels: Tensor, regions: Tensor) -> Tensor:
        """The class that each region voted for, (B, H, W): see :func:`wilson.methods.regions.vote`."""
        height, width = regions.shape[1:]
        found, old = (
            ops.upsampled_argmax(of, (height, width)).long() for of in (self.targets(seen, labels), seen.old.logits)
        )
        return vote(found, old, regions, self.old_classes, self.model.classes)

    def targets(self, seen: SeenAndRemembered, labels: Tensor) -> Tensor:
        """The merged pseudo-labels (Eq. 5, 6); in the paper's mode, the image-level labels do not gate them.

        Without the merge, the localizer labels all classes: the background is the only "old" class and takes the
        localizer's weight 1, and the other old classes pass the gate unless their labels are known.
        """
        gate, old_logits, settings = labels, self.odds(seen.old.logits), self._smoothing(seen, labels)
        scores = at_size_of(seen.eval_scores, seen.logits)
        if not self.config.merge:
            old_logits, settings = scores[:, :1], {**settings, "background": 1.0, "old_yields": False}
            if not self.all_labels:
                gate = labels.clone()
                gate[:, : self.old_classes - 1] = 1
        gate = torch.ones_like(labels) if self.paper else gate
        return ops.merge_pseudo_labels(scores, old_logits, gate, **settings)[0]

    def _smoothing(self, seen: SeenAndRemembered, labels: Tensor) -> dict[str, Any]:
        c = self.config
        yields = self.model.softmax if c.old_yields is None else c.old_yields
        settings = {
            "alpha": c.alpha,
            "background": "min" if c.background is None else c.background,
            "old_yields": yields,
        }
        if c.prior_use == "loss" or seen.maps is None:
            return settings
        shown = labels[:, self.old_classes - 1 :, None, None]  # the gate of the paper's mode is open for all classes
        return {**settings, "prior": shown * at_size_of(seen.maps, seen.logits), "prior_weight": c.prior_weight}

    @torch.no_grad()
    def explain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        seen = self.look(batch)
        labels, regions = batch["labels"], seen.regions
        learned = self.targets(seen, labels).argmax(1) if regions is None else self.voted(seen, labels, regions)
        return seen.eval_scores.softmax(1), learned

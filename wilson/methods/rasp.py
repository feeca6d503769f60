"""RaSP (Roy et al., CoLLAs 2023): WILSON, and what the names of the classes tell of where new ones are."""

from __future__ import annotations

import torch
from torch import Tensor

from wilson import ops
from wilson.data.loading import Batch
from wilson.models import SegmentationModel

from .base import SeenAndRemembered, Settings
from .upsampling import at_size_of
from .wilson import Wilson


class Rasp(Wilson):
    """WILSON's terms, and from the first epoch on the semantic prior: new classes lie where old ones of like names do.

    With A the similarity of the names, k_i the class that the old model sees at pixel i, and the new class n's
    s_n,i = A[n, k_i] / A[n, 0]::

        names = 1 / (B N P) sum_b sum_n y_n sum_i BCE(z_n,i, sigmoid(s_n,i))

    With `names_pooling`, the pooling of CLS multiplies the softmax of each new class by (1 + s_n,i) / 2 before it adds
    up.
    """

    similarity: Tensor

    def __init__(self, model: SegmentationModel, old: SegmentationModel, settings: Settings | None = None) -> None:
        super().__init__(model, old, settings)
        similarity = settings.similarity if settings else None
        if similarity is None or similarity.shape != (model.classes, model.classes):
            found = "none" if similarity is None else tuple(similarity.shape)
            raise ValueError(f"Rasp: settings.similarity must be (C, C) with C = {model.classes}, got {found}")
        self.register_buffer("similarity", similarity)

    def terms(self, seen: SeenAndRemembered, of_step: SeenAndRemembered, batch: Batch, epoch: int) -> dict[str, Tensor]:
        terms = super().terms(seen, of_step, batch, epoch)
        if self.config.names:
            scores, old_logits = at_size_of(of_step.scores, of_step.old.logits), of_step.old.logits
            # Of the old model the arg-max alone counts, which is the same for logits of a softmax
            terms["names"] = ops.prior_loss(scores, batch["labels"], similarity=self.similarity, old_logits=old_logits)
        return terms

    def classified(self, seen: SeenAndRemembered, labels: Tensor) -> Tensor:
        if not self.config.names_pooling:
            return super().classified(seen, labels)
        c = self.config
        nearness = (
            1 + ops.reference.relative_similarity(self.similarity, at_size_of(seen.old.logits, seen.scores))
        ) / 2
        focal = c.pooling == "ngwp_focal"
        pooled = pool_weighted(seen.scores, nearness, eps=self.eps, gamma=c.gamma, lam=c.lam, focal=focal)
        return self.compared(pooled, labels)


def pool_weighted(
    scores: Tensor, weight: Tensor, *, eps: float = 1.0, gamma: float = 3.0, lam: float = 0.01, focal: bool = True
) -> Tensor:
    """`ops.ngwp_focal_pool` with the softmax of the new classes multiplied by a weight before the sums S and T.

    S / P may then exceed 1. As in the published code, whose gamma is 3, the power keeps the sign of 1 - S / P.

    Args:
        scores: z `(B, C, h, w)`.
        weight: of the N new classes, the last ones, `(B, N, h, w)`; taken as constant.
        eps, gamma, lam, focal: as for `ops.ngwp_focal_pool`.

    Returns:
        Pooled scores `(B, C)`, differentiable in `scores`; float64 for float64 scores, else float32.
    """
    z = scores.to(ops.reference.accumulate(scores)).flatten(2)
    m, old = z.softmax(1), z.shape[1] - weight.shape[1]
    m = torch.cat([m[:, :old], m[:, old:] * weight.detach().flatten(2)], 1)
    mass = m.sum(2)
    pooled = (m * ops.reference.counted_scores(z)).sum(2) / (eps + mass)
    if not focal:
        return pooled
    share = mass / z.shape[2]
    return pooled + (1 - share).sign() * (1 - share).abs() ** gamma * (lam + share).log()

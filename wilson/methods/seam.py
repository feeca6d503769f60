"""Self-supervised equivariant attention (SEAM, Wang et al., CVPR 2020) as a source of hard labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wilson.data.loading import Batch
from wilson.models import SegmentationModel

from .base import Settings
from .hooks import outputs
from .two_stage import TwoStage

SCALE = 0.3  # of the second view, as the numbers below as published
HARDEST = 0.2  # share of the differences that the cross term is of
LOWEST = 0.25  # share of the pixels that are surely none of the image's classes
POWER = 4  # of the background: (1 - highest)^4
EPS = 1e-5


class Seam(TwoStage):
    """CLS on the plain mean of the scores of two views, which must agree: the image, and the image at 0.3 of its size.

    The score maps f of a view are refined to r by the likeness of its pixels (:class:`Relations`). With N(p) =
    relu(relu(p) - min - 1e-5) / (max - min + 1e-5) per image and class, and y the image-level labels, background 1::

        a = N(f) y    q = N(r) y    of the first view at the size of the second; a', q' of the second
        equivariance = mean |a - a'| over classes > 0
        cross = mean of the highest 20 % of |onehotmax(a') - q|, and of |onehotmax(a) - q'|

    where the background of a is 1 - max_{c>0} a_c, and onehotmax keeps the highest foreground class alone. CLS includes
    the mean of the lowest quarter of the pixels of max_{c>0} r_c y_c. All this as in the published code.

    The labels come from r of the crop, without other scales and flips.
    """

    inner: ClassVar[bool] = True
    localizer: Relations  # type: ignore[assignment]  # in the place of the other methods' localizer

    def __init__(self, model: SegmentationModel, old: SegmentationModel, settings: Settings | None = None) -> None:
        super().__init__(model, old, settings)
        names = {module: name for name, module in model.encoder.named_modules()}
        self.between = [names[stage] for stage in model.stages()[-3:-1]]  # two stages before the last
        self.localizer = Relations(model.feature_channels, model.classes, self._channels())

    def _channels(self) -> list[int]:
        """Of the stages in between."""
        training = self.encoder.training
        device = next(self.encoder.parameters()).device
        with torch.no_grad(), outputs(self._stages) as between:
            self.encoder.eval()(torch.zeros(1, 3, 64, 64, device=device))
        self.encoder.train(training)
        return [found.shape[1] for found in between]

    @property
    def _stages(self) -> list[nn.Module]:
        return [self.encoder.get_submodule(name) for name in self.between]

    def learn_to_localize(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        image, labels = batch["image"], batch["labels"]
        small = F.interpolate(image, scale_factor=SCALE, mode="bilinear", align_corners=True)
        gate = F.pad(labels, (1, 0), value=1.0)[:, :, None, None]
        f, r = (resized(maps, image.shape[2:]) for maps in self.view(image))
        f_small, r_small = (resized(maps, small.shape[2:]) for maps in self.view(small))
        cls = (self.of_view(f, r, labels) + self.of_view(f_small, r_small, labels)) / 2
        a, q = (normalized(resized(maps, small.shape[2:])) * gate for maps in (f, r))
        a_small, q_small = (normalized(maps) * gate for maps in (f_small, r_small))
        a, a_small = with_background(a), with_background(a_small)
        return {
            **self.weighted(cls=cls),
            "equivariance": (a - a_small)[:, 1:].abs().mean(),
            "cross": hardest(one_hot_max(a_small) - q) + hardest(one_hot_max(a) - q_small),
        }

    def of_view(self, scores: Tensor, refined: Tensor, labels: Tensor) -> Tensor:
        """CLS of a view, and the lowest of its refined maps."""
        shown = (refined[:, 1:] * labels[:, :, None, None]).amax(1).flatten(1)
        lowest = shown.topk(int(LOWEST * shown.shape[1]), largest=False).values.relu().mean()
        return self.classification(scores, labels) + lowest

    def view(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Score maps f and refined maps r of a view: (B, C, h, w) each."""
        with outputs(self._stages) as between:
            features = self.encoder(image)
        scores = self.visible(self.localizer.scores(features))
        return scores, self.localizer.refine(scores, image, between)

    def visible(self, scores: Tensor) -> Tensor:
        """The scores, 0 for old classes unless their labels are known."""
        if self.all_labels:
            return scores
        old = torch.zeros_like(scores[:, 1 : self.old_classes])
        return torch.cat([scores[:, :1], old, scores[:, self.old_classes :]], 1)

    def label(self, batch: Batch) -> Tensor:
        self.localizer.eval()
        return self.view(batch["image"])[1]

    def localize(self, batch: Batch) -> tuple[Tensor, Tensor]:
        refined = self.view(batch["image"])[1]
        return refined, refined.detach()

    def probabilities(self, image: Tensor) -> Tensor:
        refined = self.view(image)[1]
        return self.confidence(refined, torch.ones_like(refined[:, 1:, 0, 0]))

    def confidence(self, eval_scores: Tensor, labels: Tensor) -> Tensor:
        maps = normalized(eval_scores[:, 1:]) * labels[:, :, None, None]
        return torch.cat([(1 - maps.amax(1, keepdim=True)) ** POWER, maps], 1)


class Relations(nn.Module):
    """Score maps, and the module that refines them by the likeness of pixels (PCM, SEAM Sec. 3.3).

    Args:
        channels: of the features.
        classes: C, background included.
        between: channels of the two stages before the last.
    """

    def __init__(self, channels: int, classes: int, between: Sequence[int]) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Dropout2d(0.5), nn.Conv2d(channels, classes, 1, bias=False))
        earlier, later = between
        self.earlier = nn.Conv2d(earlier, 64, 1, bias=False)
        self.later = nn.Conv2d(later, 128, 1, bias=False)
        self.joined = nn.Conv2d(3 + 64 + 128, 192, 1, bias=False)

    def scores(self, features: Tensor) -> Tensor:
        """f (B, C, h, w) of features (B, channels, h, w)."""
        return self.classifier(features)

    def refine(self, scores: Tensor, image: Tensor, between: Sequence[Tensor]) -> Tensor:
        """r (B, C, h, w): each pixel's mean of the maps over the pixels that look like it.

        Args:
            scores: f (B, C, h, w); no gradient flows into it.
            image: normalised, (B, 3, H, W).
            between: outputs of the two stages before the last; no gradient flows into them.
        """
        size = scores.shape[2:]
        earlier = resized(self.earlier(between[0].detach()).relu(), size)
        later = resized(self.later(between[1].detach()).relu(), size)
        g = self.joined(torch.cat([resized(image, size), earlier, later], 1)).flatten(2)
        g = g / (g.norm(dim=1, keepdim=True) + EPS)
        likeness = (g.transpose(1, 2) @ g).relu()
        likeness = likeness / (likeness.sum(1, keepdim=True) + EPS)
        return (self.shares(scores).flatten(2) @ likeness).view_as(scores)

    @torch.no_grad()
    def shares(self, scores: Tensor) -> Tensor:
        """n: the positive scores over their peak; the background is what is left, of the others the highest stays."""
        f = scores.relu()
        n = (f - EPS).relu() / (f.amax((2, 3), keepdim=True) + EPS)
        highest = n[:, 1:].amax(1, keepdim=True)
        return torch.cat([1 - highest, n[:, 1:].where(n[:, 1:] == highest, 0)], 1)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, corners aligned."""
    if maps.shape[2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def normalized(maps: Tensor) -> Tensor:
    """N(p), per image and class in 0..1."""
    p = maps.relu()
    low, high = p.amin((2, 3), keepdim=True), p.amax((2, 3), keepdim=True)
    return (p - low - EPS).relu() / (high - low + EPS)


def with_background(maps: Tensor) -> Tensor:
    """The maps, with 1 less the highest of the others for the background."""
    return torch.cat([1 - maps[:, 1:].amax(1, keepdim=True), maps[:, 1:]], 1)


def one_hot_max(maps: Tensor) -> Tensor:
    """The maps with all foreground classes but the highest at 0; without gradient."""
    maps = maps.detach()
    highest = maps[:, 1:].amax(1, keepdim=True)
    return torch.cat([maps[:, :1], maps[:, 1:].where(maps[:, 1:] == highest, 0)], 1)


def hardest(difference: Tensor) -> Tensor:
    """Mean of the highest fifth of the absolute differences of each image."""
    each = difference.abs().flatten(1)
    return each.topk(int(HARDEST * each.shape[1])).values.mean()

"""Training as published, written out in plain PyTorch: the losses of a batch, and the descent that follows.

Nothing here comes from `wilson`, so that it can stand beside it. Symbols are those of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Terms = dict[str, Tensor]
DILATIONS = (1, 2, 4, 8, 12)
MOMENTUM, DECAY, POWER = 0.9, 1e-4, 0.9


class Trainer:
    """Networks of its own that learn from batches as the published trainer does.

    Args:
        terms: of the method, one of the functions below.
        model: at the start of the step; copied.
        old: the model before the step; copied. None in a base step.
        localizer: at the start of the step; copied. None for methods without one.
        mean, std: of the images' normalisation.
        rates: learning rate of the encoder, and of all other parameters.
        total: T, iterations of the step.
        warmup: iterations at a constant rate.
    """

    def __init__(
        self,
        terms: Callable[[Trainer, dict[str, Tensor], bool], Terms],
        model: Any,
        old: Any,
        localizer: Any,
        mean: Sequence[float],
        std: Sequence[float],
        rates: tuple[float, float],
        total: int,
        warmup: int,
    ) -> None:
        self.terms, self.total, self.warmup, self.t = terms, total, warmup, 0
        self.model, self.old, self.localizer = (deepcopy(part) for part in (model, old, localizer))
        self.mean, self.std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
        encoder = {id(p) for p in self.model.encoder.parameters()}
        self.rates = {p: rates[id(p) not in encoder] for part in self.parts for p in part.parameters()}
        self.velocity = {p: torch.zeros_like(p) for p in self.rates}

    @property
    def parts(self) -> list[nn.Module]:
        return [part for part in (self.model, self.localizer) if part is not None]

    def iteration(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Learn from one batch; returns its loss terms."""
        self.model.train()
        if self.old is not None:
            self.old.eval().requires_grad_(False)
        for p in self.rates:
            p.grad = None
        terms = self.terms(self, batch, self.t < self.warmup)
        sum(terms.values(), torch.zeros(())).backward()
        self.descend()
        return {name: term.item() for name, term in terms.items()}

    @torch.no_grad()
    def descend(self) -> None:
        """SGD with Nesterov momentum. All parameters decay, norm layers and those without a gradient included."""
        factor = 1.0 if self.t < self.warmup else (1 - self.t / self.total) ** POWER
        for p, rate in self.rates.items():
            slope = DECAY * p if p.grad is None else p.grad + DECAY * p
            self.velocity[p] = MOMENTUM * self.velocity[p] + slope
            p.sub_(rate * factor * (slope + MOMENTUM * self.velocity[p]))
        self.t += 1


def bce(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits))


def upsampled(logits: Tensor, mask: Tensor) -> Tensor:
    return F.interpolate(logits, size=mask.shape[1:], mode="bilinear", align_corners=False)


def wilson(trainer: Trainer, batch: dict[str, Tensor], warming: bool) -> Terms:
    """CLS, LOC and ENC from the start; SSS and SEG after the warm-up."""
    image, y = batch["image"], batch["labels"]
    omega, old_features = trainer.old(image)
    omega = omega.sigmoid()
    s, features = trainer.model(image)
    with torch.no_grad():
        z_bar = trainer.localizer.eval()(features)
    z = trainer.localizer.train()(features)
    old, pixels = omega.shape[1], z.shape[2] * z.shape[3]

    m = z.softmax(1)
    mass = m.sum((2, 3))
    share = mass / pixels
    pooled = (m * z).sum((2, 3)) / (1.0 + mass) + (1 - share) ** 3 * (0.01 + share).log()
    terms = {
        "cls": bce(pooled[:, old:], y[:, old - 1 :]).mean(),
        "loc": bce(z[:, :old], omega).mean(),
        "enc": (features - old_features).square().mean(),
    }
    if warming:
        return terms

    rgb = F.interpolate(image * trainer.std + trainer.mean, size=z.shape[2:], mode="bilinear", align_corners=True)
    present = torch.cat([torch.ones_like(y[:, :1]), y], 1)
    return {**terms, "sss": sss(z, claimed(rgb, z_bar.softmax(1), present), y), "seg": seg(s, z_bar, omega, present)}


def neighbours(x: Tensor, *, centre: bool = False) -> Tensor:
    """(B, C, H, W) -> (B, C, N, H, W): 8 neighbours at each distance, and the pixel itself once for each distance."""
    height, width = x.shape[2:]
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    places = [
        (rows + dy).clamp(0, height - 1) * width + (columns + dx).clamp(0, width - 1)
        for d in DILATIONS
        for dy in (-d, 0, d)
        for dx in (-d, 0, d)
        if centre or dy or dx
    ]
    return x.flatten(2)[:, :, torch.stack(places)]


def claimed(rgb: Tensor, mask: Tensor, present: Tensor) -> Tensor:
    """The pixels of each class in the refined mask: 0 or 1, (B, C, H, W)."""
    spread = neighbours(rgb, centre=True).std(2, keepdim=True, correction=1)
    likeness = -(neighbours(rgb) - rgb.unsqueeze(2)).abs() / (1e-8 + 0.1 * spread)
    weight = likeness.mean(1, keepdim=True).softmax(2)
    for _ in range(10):
        mask = (weight * neighbours(mask)).sum(2)
    mask = mask * present[:, :, None, None]
    ratio = torch.tensor([0.7] + [0.6] * (mask.shape[1] - 1), dtype=mask.dtype)
    threshold = (mask.amax((2, 3)) * ratio).clamp(min=0.2)[:, :, None, None]
    won = (mask > threshold).to(mask.dtype)
    return won * (won.sum(1, keepdim=True) == 1)


def sss(z: Tensor, won: Tensor, y: Tensor) -> Tensor:
    """Class-balanced cross-entropy over claimed pixels; images in which a class claims none count 0."""
    count = won.sum((2, 3))
    total = count.sum(1, keepdim=True)
    weight = (total - count) / (1 + total)
    images = -(weight[:, :, None, None] * won * z.log_softmax(1)).sum(1).mean((1, 2))
    return (images * ((count > 0).sum(1) == 1 + y.sum(1))).mean()


def seg(s: Tensor, z_bar: Tensor, omega: Tensor, present: Tensor, alpha: float = 0.5) -> Tensor:
    """Binary cross-entropy against the pseudo-labels, merged with the old model."""
    old = omega.shape[1]
    m = z_bar.softmax(1) * present[:, :, None, None]
    q = alpha * (m == m.amax(1, keepdim=True)).to(m.dtype) + (1 - alpha) * m
    targets = torch.cat([torch.minimum(omega[:, :1], q[:, :1]), omega[:, 1:], q[:, old:]], 1)
    images = bce(s, targets).sum(1).mean((1, 2))
    counted = ((q.sum((2, 3)) > 0) == (present > 0))[:, old:].all(1).to(q.dtype)
    return (counted * images).sum() / (counted.sum() + 1e-5)


def supervised(trainer: Trainer, batch: dict[str, Tensor], warming: bool) -> Terms:
    """The base step: binary cross-entropy, summed over classes, mean over all pixels."""
    return {"seg": binary(upsampled(trainer.model(batch["image"])[0], batch["mask"]), batch["mask"])}


def finetune_pixel(trainer: Trainer, batch: dict[str, Tensor], warming: bool) -> Terms:
    s = upsampled(trainer.model(batch["image"])[0], batch["mask"])
    return {"ce": chosen(s.log_softmax(1), batch["mask"])}


def lwf(trainer: Trainer, batch: dict[str, Tensor], warming: bool) -> Terms:
    return _distilling(trainer, batch)[0]


def ilt(trainer: Trainer, batch: dict[str, Tensor], warming: bool) -> Terms:
    terms, features, old_features = _distilling(trainer, batch)
    return {**terms, "enc": 100 * (features - old_features).square().mean()}


def mib(trainer: Trainer, batch: dict[str, Tensor], warming: bool) -> Terms:
    s, was = (upsampled(net(batch["image"])[0], batch["mask"]).softmax(1) for net in (trainer.model, trainer.old))
    old = was.shape[1]
    background_or_old = torch.cat([s[:, :old].sum(1, True), s[:, 1:]], 1)
    background_or_new = torch.cat([s[:, :1] + s[:, old:].sum(1, True), s[:, 1:old]], 1)
    kd = -(was * background_or_new.log()).mean()
    return {"ce": chosen(background_or_old.log(), batch["mask"]), "kd": 10 * kd}


def lwf_mc(trainer: Trainer, batch: dict[str, Tensor], warming: bool) -> Terms:
    s, was = (upsampled(net(batch["image"])[0], batch["mask"]) for net in (trainer.model, trainer.old))
    kd = bce(s[:, : was.shape[1]], was.sigmoid()).mean()
    return {"bce": binary(s, batch["mask"]), "kd": 10 * was.shape[1] * kd}


def _distilling(trainer: Trainer, batch: dict[str, Tensor]) -> tuple[Terms, Tensor, Tensor]:
    (s, features), (was, old_features) = trainer.model(batch["image"]), trainer.old(batch["image"])
    s, was = upsampled(s, batch["mask"]), upsampled(was, batch["mask"])
    kd = -(was.softmax(1) * s[:, : was.shape[1]].log_softmax(1)).mean()
    return {"ce": chosen(s.log_softmax(1), batch["mask"]), "kd": 100 * kd}, features, old_features


def chosen(log_probabilities: Tensor, mask: Tensor) -> Tensor:
    """Minus the log of the label's probability, mean over all pixels: those of 255 add 0 and count."""
    labelled = mask != 255
    each = log_probabilities.gather(1, torch.where(labelled, mask, 0).unsqueeze(1)).squeeze(1)
    return -(each * labelled).mean()


def binary(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy against the one-hot label, summed over classes, mean over all pixels as in `chosen`."""
    labelled = mask != 255
    one_hot = F.one_hot(torch.where(labelled, mask, 0), logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    return (bce(logits, one_hot).sum(1) * labelled).mean()


def states(parts: Iterable[nn.Module]) -> list[Tensor]:
    """Every parameter and every statistic of the networks, copied."""
    return [value.detach().clone() for part in parts for value in part.state_dict().values()]

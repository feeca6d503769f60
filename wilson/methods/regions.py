"""SASA's region vote (ICME 2026): pseudo-labels by regions of the image instead of by pixels."""

from __future__ import annotations

import torch
from torch import Tensor

SHARE = 0.6  # of a region's weight that makes it one of a new class, as published
UNIT = 2**30  # weights are counted in parts of 1: sums of integers do not depend on their order, so neither do votes


def vote(labels: Tensor, old_labels: Tensor, regions: Tensor, old_classes: int, classes: int) -> Tensor:
    """Give each region one class.

    A pixel at the distance d from the centroid of its region votes with exp(-d^2 / 2 sigma^2), where
    sigma = max(sqrt(area) / 2, 1). Where over 0.6 of the votes are for new classes, the one with the most votes among
    these takes the region; elsewhere the one with the most votes of the old model.

    Args:
        labels: classes of the pseudo-labels, int64 `(B, H, W)`.
        old_labels: classes that the old model sees, int64 `(B, H, W)`, under `old_classes`.
        regions: ids, integers `(B, H, W)`, apart for each image. Pixels of region 0 keep their label.
        old_classes: O, background included; classes from O on are new.
        classes: C, old and new ones.

    Returns:
        Classes, int64 `(B, H, W)`; of equal votes the lower class wins.
    """
    if not labels.numel():
        return labels
    ids = regions.long()
    offset = torch.arange(len(ids), device=ids.device).view(-1, 1, 1) * (ids.max() + 1)
    found, place = (ids + offset).unique(return_inverse=True)
    place = place.flatten()

    def added(values: Tensor) -> Tensor:
        return torch.zeros(len(found), dtype=torch.int64, device=ids.device).index_add_(0, place, values.flatten())

    area = added(torch.ones_like(ids))
    distance = torch.zeros(ids.shape, dtype=torch.float64, device=ids.device)
    for along in (1, 2):
        shape = [-1 if dim == along else 1 for dim in range(3)]
        position = torch.arange(ids.shape[along], device=ids.device).view(shape).expand_as(ids)
        centroid = added(position).double() / area
        distance += (position - centroid[place].view_as(position)) ** 2
    sigma = (area.double().sqrt() / 2).clamp(min=1)
    weight = (UNIT * (-distance / (2 * sigma[place].view_as(distance) ** 2)).exp()).round().long()

    new = torch.stack([added(weight * (labels == c)) for c in range(old_classes, classes)], 1)
    old = torch.stack([added(weight * (old_labels == c)) for c in range(old_classes)], 1)
    is_new = new.sum(1) > SHARE * added(weight)
    winner = torch.where(is_new, old_classes + new.argmax(1), old.argmax(1))
    return torch.where(ids == 0, labels, winner[place].view_as(labels))

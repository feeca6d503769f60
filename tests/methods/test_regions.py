"""SASA's vote of regions, against a transcription pixel by pixel, and what SEG learns from it."""

import math

import pytest
import torch
from torch.nn import functional as F

from wilson.config import LossConfig
from wilson.methods import Settings, Wilson
from wilson.methods.regions import vote
from wilson.models import build_segmenter

OLD, NEW, SIDE = 3, 2, 32


def transcribed(labels, old_labels, regions, old_classes, classes):
    """One image, one region and one pixel after the other."""
    found = labels.clone()
    for image in range(len(labels)):
        for region in regions[image].unique().tolist():
            pixels = (regions[image] == region).nonzero().tolist()
            if region == 0:
                continue
            y, x = (sum(pixel[axis] for pixel in pixels) / len(pixels) for axis in (0, 1))
            sigma = max(math.sqrt(len(pixels)) / 2, 1)
            new, old, total = [0.0] * classes, [0.0] * classes, 0.0
            for i, j in pixels:
                w = math.exp(-((i - y) ** 2 + (j - x) ** 2) / (2 * sigma**2))
                total += w
                old[old_labels[image, i, j]] += w
                if labels[image, i, j] >= old_classes:
                    new[labels[image, i, j]] += w
            winner = new.index(max(new)) if sum(new) > 0.6 * total else old.index(max(old))
            for i, j in pixels:
                found[image, i, j] = winner
    return found


def blocks(images, side, size):
    """Square regions, the first of which is none."""
    row = torch.arange(side) // size
    return (row[:, None] * (side // size) + row).expand(images, side, side).clone().int()


def test_the_vote_is_the_equation():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, OLD + NEW, (3, 24, 24), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.4] = OLD + 1
    labels[2] = labels[2].clamp(max=OLD - 1)
    old = torch.randint(0, OLD, labels.shape, generator=generator)
    regions = blocks(3, 24, 6)
    regions[1] = torch.randint(0, 9, (24, 24), generator=generator)  # scattered ones
    found = vote(labels, old, regions, OLD, OLD + NEW)
    torch.testing.assert_close(found, transcribed(labels, old, regions, OLD, OLD + NEW))
    assert {0, 1, 2, 4} <= set(found[regions > 0].tolist())
    assert torch.equal(found[regions == 0], labels[regions == 0])


@pytest.mark.parametrize(("new", "winner"), [(6, 4), (5, 1)])
def test_new_classes_need_more_than_their_share(new, winner):
    """Of ten pixels in a row 6, with 0.74 of the weight, or 5, with half of it."""
    labels = torch.tensor([[[4] * new + [0] * (10 - new)]])
    old = torch.full((1, 1, 10), 1)
    assert vote(labels, old, torch.ones(1, 1, 10), OLD, OLD + NEW).unique().tolist() == [winner]


def test_the_middle_counts_more_than_the_edge():
    labels = torch.tensor([[[0, 0, 0, 0, 4, 4, 4, 0, 0, 0, 0]]])  # 3 of 11 pixels, and 0.64 of the weight
    assert vote(labels, labels.clamp(max=0), torch.ones(1, 1, 11), OLD, OLD + NEW)[0, 0, 0] == 4


def test_nothing_to_vote_on():
    nothing = torch.zeros(0, 4, 4, dtype=torch.int64)
    assert vote(nothing, nothing, nothing, OLD, OLD + NEW).shape == (0, 4, 4)


@pytest.fixture
def method():
    torch.manual_seed(0)
    old = build_segmenter("small_resnet", 4, "none", 16, [OLD], crop=SIDE, dilations=(1, 2, 3))
    method = Wilson(old.extended(NEW), old, Settings(LossConfig(seg=2.0), 0, localizer_channels=16)).eval()
    with torch.no_grad():  # so that new classes claim pixels
        method.localizer.get_parameter("4.weight").mul_(30)
    return method


def test_seg_learns_what_the_regions_voted_for(method):
    torch.manual_seed(1)
    image = torch.randn(3, 3, SIDE, SIDE)
    labels = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 1]]).float()
    batch = {"image": image, "rgb": torch.rand_like(image), "labels": labels, "regions": blocks(3, SIDE, 8)}
    terms = method(batch, 0)
    seen = method.look(batch)
    size = (SIDE, SIDE)
    up = [F.interpolate(x.detach(), size, mode="bilinear") for x in (method.targets(seen, labels), seen.old.logits)]
    voted = transcribed(up[0].argmax(1), up[1].argmax(1), batch["regions"], OLD, OLD + NEW)
    assert (voted >= OLD).any() and (voted < OLD).any()
    logits = F.interpolate(method.model(image).logits, size, mode="bilinear")
    one_hot = F.one_hot(voted, OLD + NEW).movedim(-1, 1).float()
    expected = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none").sum(1).mean()
    torch.testing.assert_close(terms["seg"], 2.0 * expected)
    assert torch.equal(method.explain(batch)[1], voted)
    without = method({key: value for key, value in batch.items() if key != "regions"}, 0)
    for name in without.keys() - {"seg"}:
        torch.testing.assert_close(terms[name], without[name], msg=name)


def test_replayed_images_take_no_part(method):
    """Images behind `own` have no regions; the vote is that of the others."""
    torch.manual_seed(1)
    image = torch.randn(4, 3, SIDE, SIDE)
    labels = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]]).float()
    regions = blocks(4, SIDE, 8)
    regions[3] = 0
    batch = {"image": image, "rgb": torch.rand_like(image), "labels": labels, "regions": regions}
    own = {key: value[:3] for key, value in batch.items()}
    method.replayed = 0.25
    with_replay = method({**batch, "mask": torch.zeros(4, SIDE, SIDE, dtype=torch.int64), "own": 3}, 0)
    torch.testing.assert_close(with_replay["seg"], method(own, 0)["seg"])

"""SEAM against its equations, written out pixel by pixel."""

import pytest
import torch
from torch.nn import functional as F

from wilson.config import LossConfig
from wilson.errors import UserError
from wilson.methods import Seam, Settings
from wilson.models import build_segmenter

OLD, NEW, SIDE = 3, 2, 40  # background counts as old
E = 1e-5


@pytest.fixture
def method():
    torch.manual_seed(0)
    old = build_segmenter("small_resnet", 4, "none", 8, [OLD], SIDE, (1, 2, 3))
    method = Seam(old.extended(NEW), old, Settings(LossConfig(cls=2.0), 2, False, 8)).eval()
    with torch.no_grad():  # so that maps are well above 1e-5
        method.localizer.classifier.get_parameter("1.weight").mul_(20)
    return method


@pytest.fixture
def batch():
    torch.manual_seed(1)
    image = torch.randn(2, 3, SIDE, SIDE)
    return {"image": image, "rgb": torch.rand_like(image), "labels": torch.tensor([[0.0, 0, 1, 0], [0.0, 0, 1, 1]])}


def aligned(maps, size):
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)


def view(method, image):
    """f and r of a view."""
    encoder, parts = method.encoder, method.localizer
    x, blocks = image, list(encoder.children())
    found = []
    for block in blocks:
        x = block(x)
        found.append(x)
    earlier, later, last = found[-3:]
    f = parts.classifier(last)
    f = torch.cat([f[:, :1], torch.zeros_like(f[:, 1:OLD]), f[:, OLD:]], 1)
    size = f.shape[2:]
    g = torch.cat([aligned(image, size), parts.earlier(earlier).relu(), parts.later(later).relu()], 1)
    g = parts.joined(g)
    refined = torch.zeros_like(f)
    for b in range(len(f)):
        positive = f[b].relu()
        n = torch.stack([(p - E).relu() / (p.max() + E) for p in positive])
        highest = n[1:].max(0).values
        n = torch.cat([(1 - highest)[None], n[1:] * (n[1:] == highest)]).flatten(1)
        unit = [g[b].flatten(1)[:, i] / (g[b].flatten(1)[:, i].norm() + E) for i in range(n.shape[1])]
        for j in range(n.shape[1]):
            likeness = torch.stack([(unit[i] @ unit[j]).relu() for i in range(n.shape[1])])
            likeness = likeness / (likeness.sum() + E)
            refined[b].view(len(n), -1)[:, j] = n @ likeness
    return f, refined


def normalized(maps, labels):
    found = torch.zeros_like(maps)
    for b, image in enumerate(maps):
        for c, p in enumerate(image.relu()):
            y = 1.0 if c == 0 else labels[b, c - 1]
            found[b, c] = (p - p.min() - E).relu() / (p.max() - p.min() + E) * y
    return found


def test_terms_are_those_of_the_equations(method, batch):
    terms = method(batch, 0)
    image, labels = batch["image"], batch["labels"]
    small = F.interpolate(image, scale_factor=0.3, mode="bilinear", align_corners=True)
    cls, maps = torch.zeros(()), []
    with torch.no_grad():
        for look in (image, small):
            f, r = (aligned(m, look.shape[2:]) for m in view(method, look))
            bce = F.multilabel_soft_margin_loss(f[:, OLD:].mean((2, 3)), labels[:, OLD - 1 :])
            shown = (r[:, 1:] * labels[:, :, None, None]).max(1).values.flatten(1).sort(1).values
            cls = cls + (bce + shown[:, : shown.shape[1] // 4].relu().mean()) / 2
            maps.append([normalized(aligned(m, small.shape[2:]), labels) for m in (f, r)])
        (a, q), (a_small, q_small) = maps
        a[:, 0], a_small[:, 0] = 1 - a[:, 1:].max(1).values, 1 - a_small[:, 1:].max(1).values
        cross = torch.zeros(())
        for ours, refined in ((a_small, q), (a, q_small)):
            only = ours.clone()
            only[:, 1:] *= ours[:, 1:] == ours[:, 1:].max(1, keepdim=True).values
            each = (only - refined).abs().flatten(1).sort(1, descending=True).values
            cross = cross + each[:, : int(0.2 * each.shape[1])].mean()
    torch.testing.assert_close(terms["cls"], 2 * cls)
    torch.testing.assert_close(terms["equivariance"], (a - a_small)[:, 1:].abs().mean())
    torch.testing.assert_close(terms["cross"], cross)
    assert min(float(term.detach()) for term in terms.values()) > 1e-3


def test_refined_maps_teach_the_relations_and_not_the_scores(method, batch):
    scores, refined = method.view(batch["image"])
    parameters = [method.localizer.joined.weight, method.localizer.classifier.get_parameter("1.weight")]
    relations, classifier = torch.autograd.grad(refined[:, OLD:].square().sum(), parameters, allow_unused=True)
    assert scores.requires_grad and relations.abs().sum() > 0
    assert classifier is None


def test_labels_are_of_the_refined_maps_over_a_power_of_the_rest(method, batch):
    refined = method.view(batch["image"])[1]
    confidence = method.confidence(refined, batch["labels"])
    maps = normalized(refined, batch["labels"])[:, 1:]
    torch.testing.assert_close(confidence, torch.cat([(1 - maps.max(1, keepdim=True).values) ** 4, maps], 1))
    assert not confidence[:, 1:OLD].any() and not confidence[0, OLD + 1].any()
    torch.testing.assert_close(method.label(batch), refined)
    assert method.explain(batch)[0].equal(method.confidence(refined, batch["labels"]))


def test_models_without_known_stages_are_refused():
    import wilson
    from tests.support.foreign_models import Net

    old = wilson.adapt(Net())
    with pytest.raises(UserError, match="plop and seam"):
        Seam(old.extended(NEW), old, Settings(warmup=1))

"""The two-stage rivals: who learns when, what the frozen localizer's labels are, and the losses of their own."""

from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

from wilson.config import LossConfig
from wilson.methods import Cam, Eps, Seam, Settings, SingleStage
from wilson.methods.eps import saliency_loss
from wilson.models import build_segmenter
from wilson.training.loop import fill_gradients

OLD, NEW = 3, 2  # background counts as old
RIVALS = [Cam, SingleStage, Eps]


@pytest.fixture
def parts():
    torch.manual_seed(0)
    old = build_segmenter("small_resnet", 4, "none", 8, [OLD], 32, (1, 2, 3))
    model = old.extended(NEW)
    image = torch.randn(3, 3, 32, 32)
    labels = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 1]]).float()
    saliency = torch.rand(3, 32, 32)
    return model, old, {"image": image, "rgb": torch.rand_like(image), "labels": labels, "saliency": saliency}


def build(kind, parts, warmup=2, all_labels=False, **losses):
    return kind(parts[0], parts[1], Settings(LossConfig(**losses), warmup, all_labels, 8)).train()


def learned(module):
    return any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("kind", [*RIVALS, Seam])
def test_first_the_localizer_learns_then_the_model(parts, kind):
    model, old, batch = parts
    method = build(kind, parts)
    sum(method(batch, 1).values()).backward()
    assert learned(method.encoder) and learned(method.localizer) and not learned(model) and not learned(old)
    method.zero_grad()
    frozen = deepcopy([method.encoder.state_dict(), method.localizer.state_dict(), old.state_dict()])
    terms = method.train()(batch, 2)
    sum(terms.values()).backward()
    assert set(terms) == {"seg"} and learned(model)
    assert not (learned(method.encoder) or learned(method.localizer) or learned(old))
    after = [method.encoder.state_dict(), method.localizer.state_dict(), old.state_dict()]
    assert all(torch.equal(a[k], b[k]) for a, b in zip(frozen, after, strict=True) for k in a)  # statistics, too


@pytest.mark.parametrize("kind", [*RIVALS, Seam])
def test_who_does_not_learn_does_not_decay(parts, kind):
    model, _, batch = parts
    method = build(kind, parts)
    localizing = [*method.encoder.parameters(), *method.localizer.parameters()]
    for epoch, moving in ((0, localizing), (2, list(model.parameters()))):
        method.zero_grad()
        sum(method(batch, epoch).values()).backward()
        fill_gradients(method.learning(epoch))
        assert {p for p in method.parameters() if p.grad is not None} == set(moving)


@pytest.mark.parametrize("kind", RIVALS)
def test_seg_is_that_of_the_merged_hard_labels(parts, kind):
    model, old, batch = parts
    method = build(kind, parts, warmup=0).eval()
    with torch.no_grad():
        method.localizer[-1].weight *= 10
        method.localizer[-1].bias[OLD:] += 1
    scores = method.localizer(method.encoder(batch["image"])).detach()
    if kind is SingleStage:
        scores[:, 0] = 1
    scores[:, 1:OLD] = float("-inf")
    gate = torch.cat([torch.ones(3, 1), batch["labels"]], 1)[:, :, None, None]
    if kind is Cam:
        maps = torch.where(gate > 0, scores, 0).clamp(min=0)
        maps = maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-5)
        maps[:, 0] = 0.25
    else:
        maps = scores.softmax(1) * gate
    q = F.one_hot(maps.argmax(1), OLD + NEW).movedim(-1, 1).float()
    omega = old(batch["image"]).logits.sigmoid()
    target = torch.cat([torch.minimum(omega[:, :1], q[:, :1]), omega[:, 1:], q[:, OLD:]], 1)
    logits = model(batch["image"]).logits
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()
    torch.testing.assert_close(method(batch, 0)["seg"], expected)
    assert len(q.argmax(1).unique()) > 1
    confidence, labels = method.explain(batch)
    assert torch.equal(confidence.argmax(1), q.argmax(1)) and torch.equal(labels, target.argmax(1))


@pytest.mark.parametrize("kind", [Cam, Eps])
def test_classification_is_on_the_plain_mean(parts, kind):
    method = build(kind, parts).eval()
    batch = parts[2]
    pooled = method.localizer(method.encoder(batch["image"])).mean((2, 3))[:, OLD:]
    expected = F.binary_cross_entropy_with_logits(pooled, batch["labels"][:, OLD - 1 :])
    torch.testing.assert_close(method(batch, 0)["cls"], expected)


def test_single_stage_refines_in_the_second_half_over_a_constant_background(parts):
    method = build(SingleStage, parts, warmup=4)
    assert set(method(parts[2], 1)) == {"cls"} and set(method(parts[2], 2)) == {"cls", "sss"}
    scores, eval_scores = method.localize(parts[2])
    assert torch.equal(scores[:, 0], torch.ones(3, 8, 8)) and torch.equal(eval_scores[:, 0], torch.ones(3, 8, 8))


def test_labels_of_all_classes_bring_old_classes_into_play(parts):
    scores = torch.randn(3, OLD + NEW, 8, 8)
    assert build(Cam, parts).visible(scores)[:, 1:OLD].max() < -1e3
    assert torch.equal(build(Cam, parts, all_labels=True).visible(scores), scores)


def test_saliency_loss_of_a_known_case():
    """Two pixels wide; class 1 lies on the salient half, class 2 on the other: 2 counts as background."""
    confident = 50.0
    scores = torch.zeros(1, 3, 1, 4)
    scores[0, 1, 0, :2] = confident
    scores[0, 2, 0, 2:] = confident
    saliency = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    # on the left M_fg = 1, M_bg = 0: saliency 1; on the right M_fg = 0, M_bg = 1: saliency 0
    assert saliency_loss(scores, torch.ones(1, 2), saliency) < 1e-6
    # without class 2 in the image the right half is neither: 0.5 * 0 + 0.5 * (1 - 0) against 0
    assert saliency_loss(scores, torch.tensor([[1.0, 0.0]]), saliency) == pytest.approx(0.5**2 / 2, abs=1e-4)
    # salient everywhere but for class 1's own pixels: both classes swap roles
    assert saliency_loss(scores, torch.ones(1, 2), 1 - saliency) < 1e-6


def test_saliency_reaches_the_scores_at_their_size(parts):
    scores = torch.randn(3, OLD + NEW, 8, 8, requires_grad=True)
    batch = parts[2]
    small = batch["saliency"].view(3, 8, 4, 8, 4).mean((2, 4))
    loss = saliency_loss(scores, batch["labels"], batch["saliency"])
    torch.testing.assert_close(loss, saliency_loss(scores, batch["labels"], small))
    loss.backward()
    assert scores.grad.abs().sum() > 0

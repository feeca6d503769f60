"""Pixel-supervised methods: their losses against the equations written out, and who gets a gradient."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wilson
from tests.support.foreign_models import CLASSES, Net
from tests.support.pixel_supervised import NEW, OLD, SIDE, C, build, moved
from wilson import ops
from wilson.methods import METHODS, Mib, Plop, Settings
from wilson.methods.mib import unbiased_cross_entropy, unbiased_distillation
from wilson.methods.plop import guess, local_pod, strips
from wilson.models import build_backbone
from wilson.models.wide_resnet import Stage, WideResNet

REMEMBERING = ["lwf", "lwf-mc", "ilt", "mib", "sdr", "plop"]


def up(logits):
    return F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def learned(module):
    return [p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters()]


@pytest.mark.parametrize("name", ["finetune-pixel", "joint", *REMEMBERING])
def test_gradients_reach_the_model_alone(parts, name):
    model, old, batch = parts
    method = build(name, parts).train()
    if name == "plop":
        method.thresholds.fill_(2.0)  # every pixel has a label
    sum(method(batch, 0).values()).backward()
    assert all(learned(model)) and not any(learned(old))
    assert model.training and (name not in REMEMBERING or not old.training)


@pytest.mark.parametrize("name", ["finetune-pixel", "joint", "lwf", "lwf-mc", "ilt"])
def test_terms_are_those_of_the_equations(parts, name):
    model, old, batch = parts
    moved(model)
    actual = build(name, parts).eval()(batch, 0)
    (logits, features), before = model(batch["image"]), old(batch["image"])
    new, was = up(logits), up(before.logits)
    one_hot = F.one_hot(batch["mask"], C).movedim(-1, 1).float()
    ce = F.cross_entropy(new, batch["mask"])
    bce = F.binary_cross_entropy_with_logits(new, one_hot, reduction="none").sum(1).mean()
    kd = 100 * -(was.softmax(1) * new[:, :OLD].log_softmax(1)).mean(1).mean()
    binary = F.binary_cross_entropy_with_logits(new[:, :OLD], was.sigmoid(), reduction="none").sum(1).mean()
    expected = {
        "finetune-pixel": {"ce": ce},
        "joint": {"seg": bce},
        "lwf": {"ce": ce, "kd": kd},
        "lwf-mc": {"bce": bce, "kd": 10 * binary},
        "ilt": {"ce": ce, "kd": kd, "enc": 100 * (features - before.features).square().mean()},
    }[name]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["finetune-pixel", "lwf", "ilt", "mib", "sdr", "joint", "lwf-mc"])
@pytest.mark.parametrize("share", [0.25, 1])
def test_pixels_without_a_label_count_in_the_mean(parts, name, share):
    batch = parts[2]
    method = build(name, parts).eval()
    rows = int(share * SIDE)
    first = "seg" if name == "joint" else "bce" if name == "lwf-mc" else "ce"
    mask = batch["mask"].clone()
    mask[:, :rows] = 255
    partly = method({**batch, "mask": mask}, 0)[first]
    mask[:, :rows], mask[:, rows:] = batch["mask"][:, :rows], 255
    rest = method({**batch, "mask": mask}, 0)[first]
    torch.testing.assert_close(partly + rest, method(batch, 0)[first])
    assert share < 1 or partly == 0


def test_mib_terms_sum_the_probabilities(parts):
    model, old, batch = parts
    method = build("mib", parts).eval()
    moved(model.classifiers[1])
    actual = method(batch, 0)
    p, was = up(model(batch["image"]).logits).softmax(1), up(old(batch["image"]).logits).softmax(1)
    background_or_old = p[:, :OLD].sum(1)
    right = torch.where(batch["mask"] == 0, background_or_old, p.gather(1, batch["mask"].unsqueeze(1)).squeeze(1))
    background_or_new = p[:, :1] + p[:, OLD:].sum(1, keepdim=True)
    kd = -(was * torch.cat([background_or_new, p[:, 1:OLD]], 1).log()).mean()
    torch.testing.assert_close(actual, {"ce": -right.log().mean(), "kd": 10 * kd})


def test_mib_loses_nothing_where_old_and_new_hide_in_the_background():
    """An old class under a background label, and a new class where the old model saw background, cost nothing."""
    old_class = torch.full((1, C, 1, 1), -50.0)
    old_class[:, 1] = 50
    assert unbiased_cross_entropy(old_class, torch.zeros(1, 1, 1, dtype=torch.long), OLD) < 1e-6
    assert F.cross_entropy(old_class, torch.zeros(1, 1, 1, dtype=torch.long)) > 10
    new_class, background = torch.full((1, C, 1, 1), -50.0), torch.full((1, OLD, 1, 1), -50.0)
    new_class[:, OLD], background[:, 0] = 50, 50
    assert unbiased_distillation(new_class, background) < 1e-6


@pytest.mark.parametrize("kind", [Mib, Plop])
def test_new_classifiers_share_the_backgrounds_probability(parts, kind):
    model, old, batch = parts
    kind(model, old)
    model.eval(), old.eval()
    now, before = model(batch["image"]).logits.softmax(1), old(batch["image"]).logits.softmax(1)
    torch.testing.assert_close(now[:, :1] + now[:, OLD:].sum(1, True), before[:, :1])
    torch.testing.assert_close(now[:, OLD], now[:, 0])
    torch.testing.assert_close(now[:, 1:OLD], before[:, 1:])


def test_distillation_scales(parts):
    once = build("lwf", parts).eval()(parts[2], 0)
    none = build("lwf", parts, distillation=0.0).eval()(parts[2], 0)
    assert none["kd"] == 0 and torch.equal(none["ce"], once["ce"])


def test_plop_thresholds_are_the_medians_of_the_entropy(parts):
    _, old, batch = parts
    method = build("plop", parts)
    method.prepare([batch, {**batch, "image": batch["image"].flip(3), "mask": batch["mask"].flip(2)}])
    entropies: list[list[torch.Tensor]] = [[] for _ in range(OLD)]
    for image, mask in ((batch["image"], batch["mask"]), (batch["image"].flip(3), batch["mask"].flip(2))):
        classes, entropy = guess(up(old(image).logits))
        for c in range(OLD):
            entropies[c].append(entropy[(mask == 0) & (classes == c)])
    for threshold, found in zip(method.thresholds, map(torch.cat, entropies), strict=True):
        assert len(found) == 0 or threshold == pytest.approx(found.median().item(), rel=0.03)
    uniform, certain = guess(torch.zeros(1, OLD, 1, 1))[1], guess(torch.tensor([50.0, 0, 0]).view(1, OLD, 1, 1))[1]
    assert uniform.item() == pytest.approx(1) and certain.item() < 1e-6


def test_plop_terms(parts):
    """Cross-entropy with the old model's certain labels, weighted per image, and pooled differences of every stage."""
    model, old, batch = parts
    method = build("plop", parts).eval()
    moved(model)
    method.prepare([batch])
    actual = method(batch, 0)

    new_stages, old_stages, x, y = [], [], batch["image"], batch["image"]
    for before, after in zip(old.backbone, model.backbone, strict=True):
        x, y = after(x), before(y)
        if type(after).__name__ == "ResidualBlock":
            new_stages.append(x)
            old_stages.append(y)
    logits, was = model(batch["image"]).logits, old(batch["image"]).logits
    folded = torch.cat([logits[:, :1] + logits[:, OLD:].sum(1, True), logits[:, 1:OLD]], 1)

    def pooled(a, b, factor):  # an independent way: means by pooling with windows
        total = torch.zeros(len(a))
        for s in (1, 2, 4):
            side = a.shape[2] // s
            for window in ((1, side), (side, 1)):
                total = total + (F.avg_pool2d(a**2, window) - F.avg_pool2d(b**2, window)).square().sum((1, 2, 3))
        return factor * total.sqrt().mean()

    pods = [pooled(a, b, 0.01) for a, b in zip(new_stages, old_stages, strict=True)] + [pooled(folded, was, 0.0005)]
    assert len(pods) == 5
    torch.testing.assert_close(actual["pod"], math.sqrt(C / NEW) * torch.stack(pods).mean())

    p = up(was).softmax(1)
    entropy = -(p * p.log()).sum(1) / math.log(OLD)
    losses, shares = [], []
    for b in range(3):
        kept = (batch["mask"][b] == 0) & (entropy[b] < method.thresholds[p[b].argmax(0)])
        labels = torch.where(kept, p[b].argmax(0), batch["mask"][b])
        labels[(batch["mask"][b] == 0) & ~kept] = 255
        share = kept.sum() / (batch["mask"][b] == 0).sum()
        ce = F.cross_entropy(up(logits)[b : b + 1], labels[None], ignore_index=255, reduction="sum")
        losses.append(share * ce / SIDE**2)
        shares.append(share)
    assert 0 < torch.stack(shares).mean() < 1
    torch.testing.assert_close(actual["ce"], torch.stack(losses).mean())


def test_local_pod_of_maps_smaller_than_the_cells():
    a = torch.randn(2, 3, 2, 3)
    assert strips(a).shape[1] == 3 * (2 + 3) + 3 * 4 * (1 + 1)  # scale 4 has no whole cell
    assert local_pod(a, a) == 0


@pytest.mark.parametrize(("name", "count"), [("small_resnet", 4), ("resnet18", 4), ("tf_efficientnet_lite0", 5)])
def test_stages_of_a_backbone(name, count):
    found = build_backbone(name, 4 if name == "small_resnet" else 16).stages()
    assert len(found) == count and all(isinstance(stage, nn.Module) for stage in found)


def test_stages_of_the_wide_network():
    network = WideResNet([Stage(1, (4, 4)), Stage(2, (4, 4), stride=2)], width=4)
    assert network.stages() == [network.mod2, network.mod3]


def test_base_step_of_a_softmax_method_is_trained_by_one():
    assert {name for name, kind in METHODS.items() if kind.softmax} == {
        "finetune-pixel",
        "lwf",
        "ilt",
        "mib",
        "sdr",
        "plop",
    }


def test_old_model_stays_as_it_was(parts):
    _, old, batch = parts
    before = deepcopy(old.state_dict())
    build("plop", parts).train()(batch, 0)
    assert all(torch.equal(v, before[k]) for k, v in old.state_dict().items())


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"plop", "seam"}))
def test_methods_that_look_at_no_stages_train_a_softmax_model_of_another_library(name):
    old = wilson.adapt(Net())
    similarity = torch.rand(CLASSES + NEW, CLASSES + NEW) + 0.1
    settings = Settings(warmup=1, localizer_channels=8, similarity=similarity)
    method = METHODS[name](old.extended(NEW), old, settings).train()
    batch = {
        "image": torch.randn(2, 3, SIDE, SIDE), "rgb": torch.rand(2, 3, SIDE, SIDE),
        "labels": torch.tensor([[0.0] * (CLASSES - 1) + [1, 0], [0.0] * (CLASSES - 1) + [0, 1]]),
        "mask": torch.randint(CLASSES, CLASSES + NEW, (2, SIDE, SIDE)), "saliency": torch.rand(2, SIDE, SIDE),
    }  # fmt: skip
    for epoch in (0, 1):
        total = sum(method(batch, epoch).values())
        total.backward()
        assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.model.classifier.parameters())


@pytest.mark.parametrize("name", ["joint", "lwf-mc"])
def test_losses_of_sigmoids_read_a_softmax_model_as_one_versus_rest(name):
    old = wilson.adapt(Net()).eval()
    method = METHODS[name](old.extended(NEW).eval(), old, Settings()).eval()
    batch = {"image": torch.randn(2, 3, SIDE, SIDE), "mask": torch.randint(0, CLASSES + NEW, (2, SIDE, SIDE))}
    terms = method(batch, 0)
    odds = up(ops.one_versus_rest(method.model(batch["image"]).logits))
    target = F.one_hot(batch["mask"], CLASSES + NEW).movedim(-1, 1).float()
    bce = F.binary_cross_entropy_with_logits(odds, target, reduction="none").sum(1).mean()
    torch.testing.assert_close(next(iter(terms.values())), bce)
    if name == "lwf-mc":
        was = up(ops.one_versus_rest(old(batch["image"]).logits)).sigmoid()
        kd = F.binary_cross_entropy_with_logits(odds[:, :CLASSES], was, reduction="none").sum(1).mean()
        torch.testing.assert_close(terms["kd"], 10 * kd)

"""Pixel-supervised methods: their losses against the equations written out, and who gets a gradient."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import wilson
from tests.support.foreign_models import CLASSES, Net
from wilson import ops
from wilson.config import LossConfig
from wilson.methods import METHODS, Mib, Plop, Sdr, Settings
from wilson.methods.mib import unbiased_cross_entropy, unbiased_distillation
from wilson.methods.plop import guess, local_pod, strips
from wilson.methods.sdr import clustering, matching, sparsity
from wilson.models import build_backbone, build_segmenter
from wilson.models.wide_resnet import Stage, WideResNet

OLD, NEW = 3, 2  # background counts as old
C, SIDE = OLD + NEW, 32
REMEMBERING = ["lwf", "lwf-mc", "ilt", "mib", "sdr", "plop"]


@pytest.fixture
def parts():
    torch.manual_seed(0)
    old = build_segmenter("small_resnet", 4, "none", 8, [OLD], SIDE, (1, 2, 3))
    with torch.no_grad():
        old.get_parameter("classifiers.0.weight").mul_(10)  # so that its entropy varies
    model = old.extended(NEW)
    mask = torch.randint(0, NEW + 1, (3, SIDE, SIDE))
    return model, old, {"image": torch.randn(3, 3, SIDE, SIDE), "mask": torch.where(mask > 0, mask + OLD - 1, 0)}


def build(name, parts, **losses):
    return METHODS[name](parts[0], parts[1], Settings(LossConfig(**losses)))


def up(logits):
    return F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def moved(module):
    """The same module after a little training: not where it started."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


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


@pytest.mark.parametrize("kind", [Mib, Plop, Sdr])
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


def labelled_features():
    """Features of two images, their labels, and prototypes of which that of class 4 is not known."""
    torch.manual_seed(1)
    features = torch.randn(2, 6, 3, 4, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[0, 0, 3, 3], [3, 255, 4, 4], [0, 3, 3, 4]])
    labels = torch.stack([labels, torch.tensor([0, 255, 255, 0]).repeat(3, 1)])
    known = torch.tensor([False, True, True, True, False])
    return features, labels, torch.randn(C, 6, dtype=torch.float64), known


def of_class(features, labels, image, c):
    """The features of a class in an image, (n, D)."""
    return torch.stack([features[image, :, y, x] for y in range(3) for x in range(4) if labels[image, y, x] == c])


def test_sdr_compares_mean_features_with_prototypes():
    features, labels, prototypes, known = labelled_features()
    labels = torch.where(labels == 0, 1, labels)
    first = [(of_class(features, labels, 0, c).mean(0) - prototypes[c]).square().mean() for c in (1, 3)]
    second = (of_class(features, labels, 1, 1).mean(0) - prototypes[1]).square().mean()
    torch.testing.assert_close(matching(features, labels, prototypes, known), (sum(first) / 2 + second) / 2)


def test_sdr_attracts_classes_to_prototypes_and_repels_them_from_each_other():
    features, labels, prototypes, known = labelled_features()
    attraction, repulsion = clustering(features, labels, prototypes, known)
    attracted = (of_class(features, labels, 0, 3) - prototypes[3]).square().mean()
    means = [of_class(features, labels, 0, c).mean(0) for c in (0, 3, 4)]
    apart = [1 / (means[i] - means[j]).norm() for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(attraction, attracted / 2)
    torch.testing.assert_close(repulsion, sum(apart) / 3 / 2)
    repulsion.backward()
    assert features.grad.isfinite().all() and features.grad[0].any() and not features.grad[1].any()


def test_sdr_repels_nothing_between_equal_means():
    features, labels, prototypes, known = labelled_features()
    same = torch.ones_like(features).requires_grad_()
    repulsion = clustering(same, labels, prototypes, known)[1]
    repulsion.backward()
    assert repulsion == 0 and not same.grad.any()


def test_sdr_compares_exponentials_with_their_argument():
    features, labels, *_ = labelled_features()
    with torch.no_grad():
        features[0, :, 0, 0] = -1  # a pixel without a positive feature
    means = []
    for image in range(2):
        ratios = []
        for c in set(labels[image].flatten().tolist()) - {255}:
            positive = of_class(features, labels, image, c).relu()
            shares = positive / positive.max()
            ratios += [row.exp().sum() / row.sum() for row in shares if row.sum() > 0]
        means.append(sum(ratios) / len(ratios))
    value = sparsity(features, labels, C)
    torch.testing.assert_close(value, sum(means) / 2)
    value.backward()
    assert features.grad.isfinite().all() and features.grad.any()


def test_sdr_prototypes_are_the_old_features_of_the_labels(parts):
    _, old, batch = parts
    method = build("sdr", parts)
    method.prepare([{name: value[:2] for name, value in batch.items()}, {name: v[2:] for name, v in batch.items()}])
    logits, features = old(batch["image"])
    side = features.shape[2]
    labels = batch["mask"][:, :: SIDE // side, :: SIDE // side]
    labels = torch.where(labels == 0, logits.argmax(1), labels)
    assert set(labels.unique().tolist()) >= {0, 1, 3, 4}  # more than one old class, and both new ones
    for c in range(C):
        chosen = features.movedim(1, 3)[labels == c]
        assert method.known[c] == (c > 0 and len(chosen) > 0)
        if c > 0 and len(chosen):
            torch.testing.assert_close(method.prototypes[c], chosen.mean(0))


def test_sdr_terms(parts):
    """MiB's terms with its own weight; old classes match where the old model sees them in the background."""
    model, old, batch = parts
    mib, method = build("mib", parts).eval(), build("sdr", parts).eval()
    moved(model)
    method.prepare([batch])
    terms, of_mib = method(batch, 0), mib(batch, 0)
    features, logits = model(batch["image"]).features, old(batch["image"]).logits
    labels = batch["mask"][:, :: SIDE // features.shape[2], :: SIDE // features.shape[2]]
    remembered = torch.where(labels == 0, logits.argmax(1), 255)
    attraction, repulsion = clustering(features, labels, method.prototypes, method.known)
    expected = {
        "ce": of_mib["ce"],
        "kd": 10 * of_mib["kd"],
        "match": 0.01 * matching(features, remembered, method.prototypes, method.known),
        "attract": 0.001 * attraction,
        "repel": 0.001 * repulsion,
        "sparse": 0.001 * sparsity(features, labels, C),
    }
    torch.testing.assert_close(terms, expected)
    assert all(term > 0 for term in terms.values())

"""Loss terms of the methods: what is in them, when, and who gets a gradient."""

from copy import deepcopy
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch.nn import functional as F

from wilson import ops
from wilson.config import LossConfig, MethodName
from wilson.methods import METHODS, Finetune, Settings, Supervised, Wilson
from wilson.models import Localizer, build_segmenter
from wilson.ops import reference

OLD, NEW = 3, 2  # background counts as old


def segmenter(classes):
    return build_segmenter("small_resnet", 4, "none", 16, classes, crop=32, dilations=(1, 2, 3))


def build(kind, parts, losses=None, warmup=0, **settings):
    """A method on the model, the localizer and the old model of `parts`."""
    model, localizer, old, _ = parts
    method = kind(model, old, Settings(losses or LossConfig(), warmup, localizer_channels=16, **settings))
    method.localizer = localizer
    return method


@pytest.fixture
def parts():
    torch.manual_seed(0)
    old = segmenter([OLD])
    model = old.extended(NEW)
    localizer = Localizer(model.feature_channels, 16, OLD + NEW)
    image = torch.randn(3, 3, 32, 32)
    labels = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 1]]).float()
    batch = {"image": image, "rgb": (image * 0.2 + 0.5).clamp(0, 1), "labels": labels}
    return model, localizer, old, batch


def grads(module):
    return [p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters()]


def test_new_model_starts_from_the_old_one(parts):
    model, _, old, batch = parts
    model.eval(), old.eval()
    assert torch.equal(model(batch["image"]).logits[:, :OLD], old(batch["image"]).logits)


def test_supervised_matches_the_published_loss(parts):
    _, _, old, batch = parts
    mask = torch.randint(0, OLD, (3, 32, 32))
    old.eval()
    (loss,) = Supervised(old)({**batch, "mask": mask}, 0).values()
    up = F.interpolate(old(batch["image"]).logits, size=(32, 32), mode="bilinear", align_corners=False)
    one_hot = F.one_hot(mask, OLD).movedim(-1, 1).float()
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(up, one_hot, reduction="none").sum(1).mean())


def test_terms_appear_after_the_warm_up(parts):
    batch = parts[3]
    method = build(Wilson, parts, warmup=2)
    assert set(method(batch, 1)) == {"cls", "loc", "enc"}
    assert set(method(batch, 2)) == {"cls", "loc", "enc", "sss", "seg"}
    finetune = build(Finetune, parts, warmup=2)
    assert set(finetune(batch, 0)) == {"cls", "sss"}
    assert set(finetune(batch, 2)) == {"cls", "sss", "seg"}


@pytest.mark.parametrize("term", ["cls", "loc", "enc", "sss", "seg"])
def test_terms_switch_off_and_scale(parts, term):
    model, localizer, _, batch = parts
    for module in (model, localizer):
        module.eval()  # equal statistics in every call
    full = build(Wilson, parts)(batch, 0)
    twice: dict[str, Any] = {term: 2.0}
    never: dict[str, Any] = {term: 0.0}
    doubled = build(Wilson, parts, LossConfig(**twice))(batch, 0)
    without = build(Wilson, parts, LossConfig(**never))(batch, 0)
    assert set(full) - set(without) == {term}
    torch.testing.assert_close(doubled[term], 2 * full[term])


def test_terms_are_those_of_the_paper(parts):
    model, localizer, old, batch = parts
    model_copy, localizer_copy = deepcopy(model).train(), deepcopy(localizer)
    actual = build(Wilson, parts, LossConfig(alpha=0.7)).train()(batch, 0)

    y, before = batch["labels"], old(batch["image"])
    logits, features = model_copy(batch["image"])
    eval_scores = localizer_copy.eval()(features).detach()  # before the training pass moves the statistics
    scores = localizer_copy.train()(features)
    image = F.interpolate(batch["rgb"], size=(8, 8), mode="bilinear", align_corners=True)
    confident, counts = reference.confident_labels(reference.pamr(image, eval_scores.softmax(1)), y)
    expected = {
        "cls": F.binary_cross_entropy_with_logits(reference.ngwp_focal_pool(scores)[:, OLD:], y[:, OLD - 1 :]),
        "loc": reference.localization_prior_loss(scores, before.logits),
        "enc": (features - before.features).pow(2).mean(),
        "sss": reference.balanced_cross_entropy(scores, confident, counts, y),
        "seg": reference.pseudo_label_loss(logits, eval_scores, before.logits, y, alpha=0.7),
    }
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_paper_mode_follows_the_equations(parts, alpha):
    """Tiny eps, ENC summed over channels, pseudo-labels of all classes wherever they win, no least threshold."""
    model, localizer, old, batch = parts
    for module in (model, localizer):
        module.eval()  # equal statistics in every call
    actual = build(Wilson, parts, LossConfig(mode="paper", alpha=alpha)).eval()(batch, 0)

    y, before = batch["labels"], old(batch["image"])
    logits, features = model(batch["image"])
    scores = localizer(features)
    m, omega = scores.detach().softmax(1), before.logits.sigmoid()
    q = alpha * F.one_hot(m.argmax(1), OLD + NEW).movedim(-1, 1) + (1 - alpha) * m
    target = torch.cat([torch.minimum(omega[:, :1], q[:, :1]), omega[:, 1:], q[:, OLD:]], 1)
    mass = m.flatten(2).sum(2)
    pooled = (m * scores).flatten(2).sum(2) / (1e-5 + mass)
    pooled = pooled + (1 - mass / 64) ** 3 * (0.01 + mass / 64).log()
    image = F.interpolate(batch["rgb"], size=(8, 8), mode="bilinear", align_corners=True)
    confident, counts = reference.confident_labels(reference.pamr(image, m), y, floor=0.0)
    expected = {
        "cls": F.binary_cross_entropy_with_logits(pooled[:, OLD:], y[:, OLD - 1 :]),
        "loc": reference.localization_prior_loss(scores, before.logits),
        "enc": (features - before.features).pow(2).sum(1).mean(),
        "sss": reference.balanced_cross_entropy(scores, confident, counts, y),
        "seg": F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean(),
    }
    torch.testing.assert_close(actual, expected)


def test_maps_teach_the_localizer_what_the_image_shows(parts):
    """Weight 1 beside the other terms, at the size of the scores, and nothing for a class without a label."""
    model, localizer, _, batch = parts
    for module in (model, localizer):
        module.eval()  # equal statistics in every call
    maps = torch.rand(3, NEW, 4, 4)
    scores = localizer(model(batch["image"]).features)[:, OLD:]
    target = F.interpolate(maps, size=(8, 8), mode="bilinear", align_corners=False)
    each = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    y = batch["labels"][:, OLD - 1 :, None, None]
    terms = build(Wilson, parts, warmup=1)({**batch, "prior": maps}, 0)
    assert set(terms) == {"cls", "loc", "maps", "enc"}
    torch.testing.assert_close(terms["maps"], (y * each).mean())
    assert "maps" not in build(Wilson, parts, LossConfig(maps=0))({**batch, "prior": maps}, 0)
    assert "maps" not in build(Wilson, parts)(batch, 0)


@pytest.mark.parametrize("mode", ["official", "paper"])
def test_maps_are_mixed_into_the_pseudo_labels(parts, mode):
    """Of background and new classes alone, where the image shows the class, in the paper's mode, too."""
    model, localizer, old, batch = parts
    for module in (model, localizer):
        module.eval()  # equal statistics in every call
    maps, b, alpha = torch.rand(3, NEW, 8, 8), 0.8, 0.6
    method = build(Wilson, parts, LossConfig(prior_use="mix", prior_weight=b, alpha=alpha, mode=mode)).eval()
    y = batch["labels"][:, :, None, None]
    seen = method.look({**batch, "prior": maps})
    m = seen.eval_scores.softmax(1) * torch.cat([torch.ones(3, OLD, 1, 1), y[:, OLD - 1 :] if mode == "official" else
                                                 torch.ones(3, NEW, 1, 1)], 1)  # fmt: skip
    if mode == "official":
        m[:, 1:OLD] = 0
    p = maps * y[:, OLD - 1 :]
    m = torch.cat(
        [(1 - b) * m[:, :1] + b * (1 - p.amax(1, keepdim=True)), m[:, 1:OLD], (1 - b) * m[:, OLD:] + b * p], 1
    )
    q = alpha * F.one_hot(m.argmax(1), OLD + NEW).movedim(-1, 1) + (1 - alpha) * m
    omega = old(batch["image"]).logits.sigmoid()
    targets = torch.cat([torch.minimum(omega[:, :1], q[:, :1]), omega[:, 1:], q[:, OLD:]], 1)
    torch.testing.assert_close(method.targets(seen, batch["labels"]), targets)
    terms, plain = method({**batch, "prior": maps}, 0), method(batch, 0)
    assert set(terms) == set(plain) and {name for name in terms if not torch.equal(terms[name], plain[name])} == {"seg"}
    each = F.binary_cross_entropy_with_logits(seen.logits, targets, reduction="none").sum(1).mean((1, 2))
    torch.testing.assert_close(terms["seg"], each.sum() / (3 + 1e-5 * (mode == "official")))


def test_paper_mode_keeps_an_eps_that_is_given(parts):
    batch = parts[3]
    scores = torch.randn(3, OLD + NEW, 4, 4)

    def cls(**settings):
        return build(Wilson, parts, LossConfig(**settings)).classification(scores, batch["labels"])

    assert torch.equal(cls(mode="paper", eps=1.0), cls()) and not torch.equal(cls(mode="paper"), cls())
    assert torch.equal(cls(eps=1e-5), cls(mode="paper"))


def test_gradients_reach_model_and_localizer_not_the_old_model(parts):
    model, localizer, old, batch = parts
    method = build(Wilson, parts).train()
    sum(method(batch, 0).values()).backward()
    assert all(grads(model)) and all(grads(localizer)) and not any(grads(old))
    assert not old.training and model.training


def test_pseudo_labels_teach_the_segmentation_model_only(parts):
    model, localizer, _, batch = parts
    method = build(Wilson, parts, replace(LossConfig(), cls=0, loc=0, enc=0, sss=0)).train()
    method(batch, 0)["seg"].backward()
    assert all(grads(model)) and not any(grads(localizer))


def test_eval_scores_come_before_the_statistics_move(parts):
    model, localizer, _, batch = parts
    features = model(batch["image"]).features.detach()
    localizer.train()
    before = {k: v.clone() for k, v in localizer.state_dict().items()}
    scores = localizer.eval_scores(features)
    assert localizer.training and not scores.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in localizer.state_dict().items())


def test_classification_sees_new_classes_only_unless_all_labels_are_given(parts):
    batch = parts[3]
    scores = torch.randn(3, OLD + NEW, 4, 4)
    changed = scores.clone()
    labels = batch["labels"].clone()
    labels[:, : OLD - 1] = 1
    ours = build(Wilson, parts)
    every = build(Wilson, parts, all_labels=True)
    assert torch.equal(ours.classification(changed, labels), ours.classification(scores, batch["labels"]))
    assert not torch.equal(every.classification(scores, labels), every.classification(scores, batch["labels"]))


def test_finetune_targets_are_hard_labels_of_background_and_new_classes(parts):
    batch = parts[3]
    method = build(Finetune, parts).eval()
    labels = batch["labels"].clone()
    labels[:, 0] = 1  # an old class's label must not matter
    pseudo = method.look(batch)
    targets, _ = ops.merge_pseudo_labels(*method._hard_labels(pseudo, {**batch, "labels": labels}), **method._settings)
    assert targets[:, 1:OLD].abs().max() == 0
    assert set(targets.unique().tolist()) <= {0.0, 1.0} and torch.equal(targets.sum(1), torch.ones(3, 8, 8))
    present = torch.cat([torch.ones(3, 1), batch["labels"]], 1)[:, :, None, None]
    assert (targets * (1 - present)).sum() == 0


@pytest.mark.parametrize("prior", ["loc", "softmax", "fixed", "background", "none"])
def test_localization_prior(parts, prior):
    """What takes the place of LOC, and what the localizer's scores are then."""
    model, localizer, old, batch = parts
    method = build(Wilson, parts, LossConfig(prior=prior)).eval()
    terms, pseudo = method(batch, 0), method.look(batch)
    raw, before = localizer(model(batch["image"]).features), old(batch["image"]).logits
    expected = {
        "fixed": torch.cat([before, raw[:, OLD:]], 1),
        "background": torch.cat([torch.ones(3, 1, 8, 8), raw[:, 1:]], 1),
    }.get(prior, raw)
    torch.testing.assert_close(pseudo.scores, expected)
    torch.testing.assert_close(pseudo.eval_scores, expected)
    torch.testing.assert_close(method.probabilities(batch["image"]), expected.softmax(1))
    assert ("loc" in terms) == (prior in ("loc", "softmax"))
    if prior == "softmax":
        cross_entropy = -(before.softmax(1) * raw.log_softmax(1)[:, :OLD]).sum(1).mean()
        torch.testing.assert_close(terms["loc"], cross_entropy)
    pooled = reference.ngwp_focal_pool(expected)[:, OLD:]
    cls = F.binary_cross_entropy_with_logits(pooled, batch["labels"][:, OLD - 1 :])
    torch.testing.assert_close(terms["cls"], cls)


@pytest.mark.parametrize("prior", ["fixed", "background"])
def test_scores_that_a_prior_replaces_get_no_gradient(parts, prior):
    method = build(Wilson, parts, LossConfig(prior=prior)).train()
    sum(method(parts[3], 0).values()).backward()
    last = parts[1][-1].weight.grad
    replaced = OLD if prior == "fixed" else 1
    assert last[:replaced].abs().max() == 0 and last[replaced:].abs().sum() > 0
    assert not any(grads(parts[2]))


@pytest.mark.parametrize("pooling", ["gap", "ngwp", "ngwp_focal"])
def test_pooling(parts, pooling):
    scores = torch.randn(3, OLD + NEW, 8, 8)
    expected = {
        "gap": scores.mean((2, 3)),
        "ngwp": reference.ngwp_focal_pool(scores, focal=False),
        "ngwp_focal": reference.ngwp_focal_pool(scores),
    }[pooling]
    torch.testing.assert_close(build(Wilson, parts, LossConfig(pooling=pooling)).pooled(scores), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_without_the_merge_pseudo_labels_are_the_localizers(parts, alpha):
    """Old classes pass the gate, their labels being unknown, and the background is the localizer's own."""
    _, localizer, _, batch = parts
    with torch.no_grad():
        localizer[-1].bias[:OLD] += 1  # old classes win somewhere
    method = build(Wilson, parts, LossConfig(merge=False, alpha=alpha)).eval()
    pseudo = method.look(batch)
    gate = torch.cat([torch.ones(3, OLD), batch["labels"][:, OLD - 1 :]], 1)[:, :, None, None]
    m = pseudo.eval_scores.softmax(1) * gate
    targets = alpha * F.one_hot(m.argmax(1), OLD + NEW).movedim(-1, 1) + (1 - alpha) * m
    torch.testing.assert_close(method.targets(pseudo, batch["labels"]), targets)
    assert targets[:, 1:OLD].sum() > 0
    seg = F.binary_cross_entropy_with_logits(pseudo.logits, targets, reduction="none").sum(1).mean()
    torch.testing.assert_close(method(batch, 0)["seg"], seg)


def test_every_method_has_its_option():
    assert get_args(MethodName) == tuple(METHODS)
    weak = {name for name, kind in METHODS.items() if not kind.pixel_supervised}
    assert weak == {"wilson", "rasp", "finetune", "cam", "ss", "eps", "seam"}

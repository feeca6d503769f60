"""RaSP: what the names of the classes tell the localizer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wilson import ops
from wilson.config import LossConfig
from wilson.methods import Rasp, Settings, Wilson
from wilson.methods.rasp import pool_weighted
from wilson.models import build_segmenter
from wilson.ops.reference import relative_similarity

OLD, NEW = 3, 2  # background counts as old
SIMILARITY = torch.exp(-5 * (1 - torch.tensor([
    [1.0, 0.1, 0.2, 0.15, 0.3],
    [0.1, 1.0, 0.6, 0.5, 0.2],
    [0.2, 0.6, 1.0, 0.1, 0.7],
    [0.15, 0.5, 0.1, 1.0, 0.4],
    [0.3, 0.2, 0.7, 0.4, 1.0],
])))  # fmt: skip


@pytest.fixture
def parts():
    torch.manual_seed(0)
    old = build_segmenter("small_resnet", 4, "none", 16, [OLD], 32, (1, 2, 3)).eval()
    image = torch.randn(3, 3, 32, 32)
    with torch.no_grad():  # so that the old model sees each of its classes somewhere
        old.classifiers[0].get_parameter("bias").sub_(old(image).logits.mean((0, 2, 3)))
    labels = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 1]]).float()
    return old, {"image": image, "rgb": torch.rand_like(image), "labels": labels}


def build(old, kind=Rasp, **losses):
    torch.manual_seed(1)
    return kind(old.extended(NEW), old, Settings(LossConfig(**losses), 1, False, 8, SIMILARITY)).eval()


@pytest.fixture
def golden():
    values = np.load(Path(__file__).parents[1] / "golden" / "names_small.npz")
    return {key: torch.as_tensor(values[key]) for key in values}


def test_names_term_is_that_of_the_equation(parts):
    """Pixel by pixel: the similarity to the class that the old model sees, relative to that to the background."""
    old, batch = parts
    method = build(old)
    terms = method(batch, 0)
    assert set(terms) == {"cls", "loc", "enc", "names"}
    scores, seen = method.look(batch).scores, old(batch["image"]).logits
    assert set(seen.argmax(1).unique().tolist()) == set(range(OLD))
    total = torch.zeros(())
    for b in range(3):
        for n in range(OLD, OLD + NEW):
            for y in range(8):
                for x in range(8):
                    k = seen[b, :, y, x].argmax()
                    t = torch.sigmoid(SIMILARITY[n, k] / SIMILARITY[n, 0])
                    z = scores[b, n, y, x]
                    bce = -t * F.logsigmoid(z) - (1 - t) * F.logsigmoid(-z)
                    total = total + batch["labels"][b, n - 1] * bce
    torch.testing.assert_close(terms["names"], total / (3 * NEW * 64))


def test_the_other_terms_are_wilsons(parts):
    old, batch = parts
    terms, plain = build(old)(batch, 1), build(old, Wilson)(batch, 1)
    assert set(terms) == {*plain, "names"}
    torch.testing.assert_close({name: terms[name] for name in plain}, plain)
    torch.testing.assert_close(build(old, names=3.0)(batch, 1)["names"], 3 * terms["names"])
    assert set(build(old, names=0.0)(batch, 1)) == set(plain)


def test_names_teach_the_scores_of_new_classes_alone(parts):
    old, batch = parts
    method = build(old, cls=0, loc=0, enc=0)
    method(batch, 0)["names"].backward()
    last = method.localizer[-1].weight.grad
    assert not last[:OLD].any() and last[OLD:].abs().sum() > 0
    assert all(p.grad is None for p in old.parameters())


def test_pooling_by_names_is_the_published_one(golden):
    z = golden["z"].requires_grad_()
    nearness = (1 + relative_similarity(golden["similarity"], golden["old_logits"])) / 2
    pooled = pool_weighted(z, nearness)
    torch.testing.assert_close(pooled, golden["pool"], rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad((pooled * golden["pool_grad_out"]).sum(), z)
    torch.testing.assert_close(gradient, golden["pool_grad_z"], rtol=1e-9, atol=1e-12)


def test_targets_are_the_published_ones(golden):
    s = relative_similarity(golden["similarity"], golden["old_logits"])
    torch.testing.assert_close(s.sigmoid(), golden["target"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("pooling", ["ngwp_focal", "ngwp"])
def test_pooling_with_a_weight_of_one_is_the_plain_one(pooling):
    z, focal = torch.randn(2, OLD + NEW, 5, 6), pooling == "ngwp_focal"
    plain = ops.ngwp_focal_pool(z, focal=focal)
    torch.testing.assert_close(pool_weighted(z, torch.ones(2, NEW, 5, 6), focal=focal), plain)


def test_names_pooling_changes_cls_alone(parts):
    old, batch = parts
    plain, weighted = build(old)(batch, 0), build(old, names_pooling=True)(batch, 0)
    assert {name for name in plain if not torch.equal(plain[name], weighted[name])} == {"cls"}
    method = build(old, names_pooling=True)
    s = relative_similarity(SIMILARITY, old(batch["image"]).logits)
    pooled = pool_weighted(method.look(batch).scores, (1 + s) / 2)
    cls = F.binary_cross_entropy_with_logits(pooled[:, OLD:], batch["labels"][:, OLD - 1 :])
    torch.testing.assert_close(weighted["cls"], cls)


def test_a_table_of_another_size_is_refused(parts):
    old, _ = parts
    for table in (None, SIMILARITY[1:]):
        with pytest.raises(ValueError, match=r"similarity must be \(C, C\) with C = 5, got"):
            Rasp(old.extended(NEW), old, Settings(similarity=table))

"""The loss of new classes against a prior from outside: what it is of, and what it does not look at."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wilson import ops
from wilson.ops import reference

OLD, NEW = 3, 2


@pytest.fixture(params=[reference, ops], ids=["reference", "ops"])
def module(request):
    return request.param


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    z = torch.randn(2, OLD + NEW, 4, 5, dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1, 0], [0, 0, 1, 1]])
    return z, labels, torch.rand(2, NEW, 4, 5, dtype=torch.float64)


def test_published_code(module):
    """RaSP's loss and its gradient; the same with its targets as maps."""
    figures = np.load(Path(__file__).parents[1] / "golden" / "names_small.npz")
    golden = {key: torch.as_tensor(figures[key]) for key in figures}
    by_names = {"similarity": golden["similarity"], "old_logits": golden["old_logits"]}
    for source in (by_names, {"maps": golden["target"]}):
        z = golden["z"].clone().requires_grad_()
        loss = module.prior_loss(z, golden["labels_new"], **source)
        torch.testing.assert_close(loss, golden["loss"], rtol=1e-9, atol=0)
        (gradient,) = torch.autograd.grad(loss, z)
        torch.testing.assert_close(gradient, golden["grad_z"], rtol=1e-9, atol=1e-12)


def test_mean_over_all_images_and_new_classes(module, inputs):
    z, labels, maps = inputs
    per_class = F.binary_cross_entropy_with_logits(z[:, OLD:], maps, reduction="none").flatten(2).sum(2)
    expected = (per_class[0, 0] + per_class[1].sum()) / (2 * NEW * 20)
    torch.testing.assert_close(module.prior_loss(z, labels, maps=maps), expected)


def test_what_no_label_names_is_not_looked_at(module, inputs):
    z, labels, maps = inputs
    z = z.requires_grad_()
    (expected,) = torch.autograd.grad(module.prior_loss(z, labels, maps=maps), z)
    odd, odd_maps = z.detach().clone(), maps.clone()
    odd[:, :OLD] = odd[0, OLD + 1] = odd_maps[0, 1] = torch.nan
    odd.requires_grad_()
    loss = module.prior_loss(odd, labels, maps=odd_maps)
    assert torch.equal(loss, module.prior_loss(z, labels, maps=maps))
    (gradient,) = torch.autograd.grad(loss, odd)
    assert torch.equal(gradient, expected)
    assert not gradient[:, :OLD].any() and not gradient[0, OLD + 1].any()


def test_the_first_of_equal_old_classes_is_seen(module, inputs):
    z, labels, _ = inputs
    similarity = torch.rand(OLD + NEW, OLD + NEW, dtype=torch.float64) + 0.1
    of_first = (similarity[OLD:, 1] / similarity[OLD:, 0]).sigmoid()[:, None, None].expand(2, NEW, 4, 5)
    equal = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)[:, None, None].expand(2, OLD, 4, 5)
    loss = module.prior_loss(z, labels, similarity=similarity, old_logits=equal)
    torch.testing.assert_close(loss, module.prior_loss(z, labels, maps=of_first))

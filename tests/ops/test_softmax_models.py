"""What old models that softmax cross-entropy has trained need: one-versus-rest logits, and old classes that yield."""

import pytest
import torch

from tests.support import cases
from wilson import ops
from wilson.ops import reference

MODULES = pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])


def against_all_others(s):
    """The definition, class by class, in float64."""
    classes = range(s.shape[1])
    others = [s[:, [k for k in classes if k != c]].double().logsumexp(1) for c in classes]
    return s.double() - torch.stack(others, 1)


@MODULES
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 3, 21])
@pytest.mark.parametrize("lead", [0.0, 1.0, 50.0, 200.0, 1e4])
def test_a_sure_pixel_keeps_how_sure_it_is(module, dtype, classes, lead):
    """However far one class leads, or two: within rounding of the definition, relative to each logit."""
    z = torch.randn(3, classes, 4, 5, dtype=torch.float64)
    z[:, 1] += lead
    z[1, 0] += lead  # two that lead
    z[2, 0] = z[2, 1]  # by as much
    z = z.to(dtype).requires_grad_()
    logits = module.one_versus_rest(z)
    assert logits.dtype == dtype and logits.isfinite().all()
    rounding = torch.finfo(dtype).eps
    expected = against_all_others(z.detach())
    error = (logits.detach().double() - expected).abs()
    assert (error <= 8 * max(rounding, 1e-15) * expected.abs().clamp(min=1)).all()
    grad = torch.randn_like(expected).to(dtype)
    (got,) = torch.autograd.grad(logits, z, grad)
    leaf = z.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(against_all_others(leaf), leaf, grad.double())
    rounding = max(rounding, 1e-15 * lead)  # of the definition's own sums
    assert (got.double() - exact).abs().max() <= 16 * rounding * exact.abs().max()


@MODULES
def test_the_sigmoid_is_the_softmax(module):
    s = torch.randn(2, 7, 4, 5, dtype=torch.float64) * 5
    torch.testing.assert_close(module.one_versus_rest(s).sigmoid(), s.softmax(1))
    torch.testing.assert_close(module.one_versus_rest(s + 1e3).sigmoid(), s.softmax(1))
    two = module.one_versus_rest(s[:, :2])
    torch.testing.assert_close(two[:, 0], s[:, 0] - s[:, 1])
    torch.testing.assert_close(two[:, 1], -two[:, 0])


def test_keeps_the_layout_of_the_logits():
    s = torch.randn(2, 7, 4, 5).contiguous(memory_format=torch.channels_last)
    assert ops.one_versus_rest(s).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_takes_gradients_of_any_strides(layout):
    s = cases.lay_out(torch.randn(2, 7, 4, 5), layout).requires_grad_()
    drawn = torch.randn(1, 7, 1, 1)
    transposed = drawn.expand(2, 7, 5, 4).contiguous().transpose(2, 3)
    for grad in (drawn.expand(2, 7, 4, 5), transposed, torch.ones(()).expand(s.shape)):
        (got,) = torch.autograd.grad(ops.one_versus_rest(s), s, grad)
        (expected,) = torch.autograd.grad(reference.one_versus_rest(s), s, grad)
        torch.testing.assert_close(got, expected)


@MODULES
@pytest.mark.parametrize("background", ["min", 0.25])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_old_classes_yield_what_new_ones_take(module, alpha, background):
    scores, s = torch.randn(2, 6, 4, 5, dtype=torch.float64) * 3, torch.randn(2, 4, 4, 5, dtype=torch.float64) * 20
    labels = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]])
    old = module.one_versus_rest(s)
    options = {"alpha": alpha, "background": background}
    kept, _ = module.merge_pseudo_labels(scores, old, labels, **options)
    targets, weight = module.merge_pseudo_labels(scores, old, labels, **options, old_yields=True)
    new = (scores.softmax(1)[:, 4:] * labels[:, 3:, None, None]).sum(1)
    torch.testing.assert_close(targets[:, 1:4], kept[:, 1:4] * (1 - new[:, None]))
    assert torch.equal(targets[:, 4:], kept[:, 4:]) and (targets[:, 0] <= kept[:, 0]).all() and (targets >= 0).all()
    assert targets.sum(1).max() <= 1 + alpha + 1e-9 or background != "min"
    if background != "min":
        q = (kept[:, 0] - 0.75 * old[:, 0].sigmoid()) / 0.25
        torch.testing.assert_close(targets[:, 0], 0.75 * old[:, 0].sigmoid() * (1 - new) + 0.25 * q)
    logits = torch.randn_like(scores)
    loss = module.pseudo_label_loss(logits, scores, old, labels, **options, old_yields=True)
    torch.testing.assert_close(loss, module.soft_margin_loss(logits, targets, image_weight=weight))


@MODULES
def test_without_a_label_nothing_yields(module):
    scores, old, labels = torch.randn(2, 6, 4, 5) * 3, torch.randn(2, 4, 4, 5), torch.zeros(2, 5)
    for old_logits in (old, torch.randn(2, 6, 4, 5)):  # and without a new class
        given = (scores, old_logits, labels)
        assert torch.equal(
            module.merge_pseudo_labels(*given, old_yields=True)[0], module.merge_pseudo_labels(*given)[0]
        )

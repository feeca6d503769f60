"""Pseudo-labels mixed with a prior: the equation, written out pixel by pixel, and what follows from it."""

import itertools

import pytest
import torch

from tests.support import cases
from tests.support.agreement import flat
from wilson import ops
from wilson.ops import _library, reference

MODULES = pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
EVERY = [case for case in cases.pseudo_labels(torch.float32) if "prior" in case.kwargs]
OPS = ("merge_pseudo_labels", "pseudo_label_loss")


def drawn(classes=6, old=3, batch=2, size=(4, 5)):
    """Scores, old logits, labels of new classes, and a prior, in float64."""
    scores, logits = torch.randn(batch, classes, *size).double() * 2, torch.randn(batch, old, *size).double()
    labels = torch.zeros(batch, classes - 1)
    labels[0, old - 1 :: 2] = 1
    labels[1:, old - 1 :] = 1
    return scores, logits, labels, torch.rand(batch, classes - old, *size).double()


def pixel(z, o, y, p, b, alpha, background, old_yields):
    """Targets of one pixel, from lists of numbers; `y` has 1 for the background."""
    classes, old = len(z), len(o)
    e = [torch.tensor(x).exp().item() for x in z]
    m = [e[c] / sum(e) * y[c] for c in range(classes)]
    taken = sum(m[old:])
    gated = [p[n] * y[old + n] for n in range(classes - old)]
    m[0] = (1 - b) * m[0] + b * (1 - max(gated))
    for n in range(classes - old):
        m[old + n] = (1 - b) * m[old + n] + b * gated[n]
    q = [alpha * (m[c] == max(m)) + (1 - alpha) * m[c] for c in range(classes)]
    omega = [1 / (1 + torch.tensor(-x).exp().item()) * (1 - taken if old_yields else 1) for x in o]
    first = min(omega[0], q[0]) if background == "min" else (1 - background) * omega[0] + background * q[0]
    return [first, *omega[1:], *q[old:]]


@MODULES
@pytest.mark.parametrize("old_yields", [False, True])
@pytest.mark.parametrize(("alpha", "background"), [(0.5, "min"), (0.0, 1.0), (1.0, 0.25)])
@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("old", [1, 3])
def test_is_the_equation(module, old, weight, alpha, background, old_yields):
    scores, logits, labels, prior = drawn(old=old)
    options = {"alpha": alpha, "background": background, "old_yields": old_yields}
    targets, image_weight = module.merge_pseudo_labels(
        scores, logits, labels, **options, prior=prior, prior_weight=weight
    )
    expected = torch.empty_like(targets)
    for b, i, j in itertools.product(range(2), range(4), range(5)):
        maps = (scores[b, :, i, j], logits[b, :, i, j], torch.cat([torch.ones(1), labels[b]]), prior[b, :, i, j])
        z, o, y, p = (x.tolist() for x in maps)
        values = pixel(z, o, y, p, weight, **options)
        expected[b, :, i, j] = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(targets, expected)
    found = (expected[:, old:] > 0).flatten(2).any(2)
    assert torch.equal(image_weight > 0, (found == (labels[:, old - 1 :] > 0)).all(1))
    s = torch.randn_like(scores)
    loss = module.pseudo_label_loss(s, scores, logits, labels, **options, prior=prior, prior_weight=weight)
    torch.testing.assert_close(loss, module.soft_margin_loss(s, targets, image_weight=image_weight))


@MODULES
def test_a_sure_prior_wins_the_arg_max(module):
    scores, logits, labels, _ = drawn()
    prior = torch.zeros(2, 3, 4, 5).double()
    prior[:, 0, 1] = 0.9  # a labelled class of both images
    prior[0, 1, 2] = 1.0  # a class without a label
    options = {"alpha": 1.0, "background": 1.0}
    targets, _ = module.merge_pseudo_labels(scores, logits, labels, **options, prior=prior, prior_weight=1.0)
    hard = targets[:, [0, 3, 4, 5]].argmax(1)
    assert (hard[:, 1] == 1).all() and (hard[:, [0, 2, 3]] == 0).all()
    kept, _ = module.merge_pseudo_labels(scores, logits, labels, **options)
    assert (kept[:, [0, 3, 4, 5]].argmax(1) != hard).any()


@MODULES
@pytest.mark.parametrize("op", OPS)
def test_without_weight_there_is_no_prior(module, op):
    case = next(case for case in EVERY if case.op == op and case.name == "prior_without_weight")
    function = getattr(module, op)
    for got, expected in zip(
        flat(case.value_and_grad(function)), flat(cases.replace(case, kwargs={}).value_and_grad(function)), strict=True
    ):
        assert torch.equal(got, expected)


@MODULES
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_prior_of_a_class_without_a_label_does_not_matter(module, layout):
    scores, logits, labels, prior = drawn()
    given = {"prior": cases.lay_out(prior, layout), "prior_weight": 0.5}
    expected = module.merge_pseudo_labels(scores, logits, labels, **given)
    prior[0, 1] = torch.nan
    given["prior"] = cases.lay_out(prior, layout)
    got = module.merge_pseudo_labels(scores, logits, labels, **given)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    labels[0, 3] = 1
    targets, _ = module.merge_pseudo_labels(scores, logits, labels, **given, background=0.5)
    assert (
        targets[0, [0, 4]].isnan().all() and targets[0, [1, 2, 3, 5]].isfinite().all() and targets[1].isfinite().all()
    )


@MODULES
def test_the_widest_dtype_counts(module):
    scores, logits, labels, prior = (x.bfloat16() for x in drawn())
    s = torch.randn_like(scores).requires_grad_()
    for wide, dtype in ((prior.double(), torch.float64), (prior, torch.float32)):
        given = {"prior": wide, "prior_weight": 0.5}
        assert all(t.dtype == dtype for t in module.merge_pseudo_labels(scores, logits, labels, **given))
        loss = module.pseudo_label_loss(s, scores, logits, labels, **given)
        assert loss.dtype == dtype and torch.autograd.grad(loss, s)[0].dtype == torch.bfloat16


@MODULES
def test_no_gradient_goes_to_a_prior(module):
    scores, logits, labels, prior = drawn()
    s = torch.randn_like(scores).requires_grad_()
    given = {"prior": prior.requires_grad_(), "prior_weight": 0.5}
    assert not module.merge_pseudo_labels(scores, logits, labels, **given)[0].requires_grad
    loss = module.pseudo_label_loss(s, scores, logits, labels, **given)
    grad, of_prior = torch.autograd.grad(loss, [s, prior], allow_unused=True)
    assert grad.abs().sum() > 0 and of_prior is None


def test_transforms_of_torch_func_take_a_prior():
    scores, logits, labels, prior = drawn()
    s, stacked = torch.randn_like(scores), torch.stack([prior, 1 - prior])

    def loss(s, prior):
        return ops.pseudo_label_loss(s, scores, logits, labels, prior=prior, prior_weight=0.5)

    def targets(prior):
        return ops.merge_pseudo_labels(scores, logits, labels, prior=prior, prior_weight=0.5)[0]

    leaf = s.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, prior), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(s, prior), expected)
    torch.testing.assert_close(torch.func.vmap(loss, (None, 0))(s, stacked)[1], loss(s, 1 - prior))
    torch.testing.assert_close(torch.func.vmap(targets)(stacked)[1], targets(1 - prior))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_whole(op, backend):
    case = next(case for case in EVERY if case.op == op and case.name == "prior")
    compiled = torch.compile(getattr(ops, op), fullgraph=True, backend=backend)
    for got, expected in zip(
        flat(case.value_and_grad(compiled)), flat(case.value_and_grad(getattr(ops, op))), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.skipif(not _library.has_kernel(OPS[0], "CPU"), reason="installed without compiled kernels")
@pytest.mark.parametrize("case", EVERY, ids=str)
def test_same_bits_for_any_threads_and_neighbours(case):
    function, threads = getattr(ops, case.op), torch.get_num_threads()
    expected = flat(case.value_and_grad(function))
    try:
        torch.set_num_threads(3 - min(threads, 2))
        again = flat(case.value_and_grad(function))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    if case.op == "merge_pseudo_labels" and len(case.args[0]):  # a loss is a mean over the batch
        alone = function(*(a[-1:] for a in case.args), **case.kwargs | {"prior": case.kwargs["prior"][-1:]})
        assert all(torch.equal(a, b[-1:]) for a, b in zip(alone, expected, strict=True))

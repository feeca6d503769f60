"""Bad arguments are refused before any work, with a text that names op, argument, expected and got."""

import inspect

import pytest
import torch

from tests.support import cases
from wilson import ops
from wilson.ops import reference
from wilson.ops._registry import OPS

Z = torch.zeros(2, 5, 4, 4)
OLD = torch.zeros(2, 3, 4, 4)
Y = torch.zeros(2, 4)
LABELS = torch.zeros(2, 4, 4, dtype=torch.long)
COUNTS = torch.zeros(2, 5, dtype=torch.long)
MANY = torch.zeros(2, 300, 4, 4)
IMAGE = torch.zeros(2, 3, 4, 4)
PRIOR = torch.zeros(2, 2, 4, 4)
SQUARE = torch.ones(5, 5)


def by_names(**changes):
    return ops.prior_loss(Z, Y, **{"similarity": SQUARE, "old_logits": OLD} | changes)


def mixed(prior, weight=0.5, old=OLD):
    return ops.merge_pseudo_labels(Z, old, Y, prior=prior, prior_weight=weight)


REFUSED = [
    (TypeError, "scores must be float64", lambda: ops.ngwp_focal_pool(Z.long())),
    (TypeError, "scores must be a tensor, got list", lambda: ops.ngwp_focal_pool([1.0])),  # type: ignore[arg-type]
    (ValueError, r"scores must be \(B, C, H, W\), got shape \(5, 4, 4\)", lambda: ops.ngwp_focal_pool(Z[0])),
    (ValueError, "empty in its batch only", lambda: ops.ngwp_focal_pool(Z[:, :0])),
    (ValueError, "empty in its batch only", lambda: ops.ngwp_focal_pool(Z[:, :, :0])),
    (ValueError, "eps must be positive, got 0", lambda: ops.ngwp_focal_pool(Z, eps=0)),
    (ValueError, "lam must be positive", lambda: ops.ngwp_focal_pool(Z, lam=-1.0)),
    (ValueError, "gamma must be at least 1, got 0.5", lambda: ops.ngwp_focal_pool(Z, gamma=0.5)),
    (ValueError, "more than the 3 of scores", lambda: ops.localization_prior_loss(OLD, Z)),
    (ValueError, "old_logits must have the batch", lambda: ops.localization_prior_loss(Z, OLD[:1])),
    (ValueError, "old_logits must have the batch", lambda: ops.localization_prior_loss(Z, OLD[:, :, :2])),
    (ValueError, "targets must have the shape", lambda: ops.soft_margin_loss(Z, OLD)),
    (ValueError, r"image_weight must be \(B,\)", lambda: ops.soft_margin_loss(Z, Z, image_weight=torch.zeros(3))),
    (TypeError, "image_weight must be float64", lambda: ops.soft_margin_loss(Z, Z, image_weight=Y[:, 0].long())),
    (ValueError, "C >= 2, got shape", lambda: ops.one_versus_rest(Z[:, :1])),
    (ValueError, "leave the background column out", lambda: ops.merge_pseudo_labels(Z, OLD, torch.zeros(2, 5))),
    (ValueError, "alpha must be within 0..1, got 1.5", lambda: ops.merge_pseudo_labels(Z, OLD, Y, alpha=1.5)),
    (ValueError, '"min" or a weight', lambda: ops.merge_pseudo_labels(Z, OLD, Y, background="max")),
    (ValueError, "background must be within 0..1", lambda: ops.pseudo_label_loss(Z, Z, OLD, Y, background=2.0)),
    (ValueError, "localizer_scores must have the shape", lambda: ops.pseudo_label_loss(Z, Z[:, :4], OLD, Y[:, :3])),
    (
        ValueError,
        "given together, got prior alone; pass prior_weight",
        lambda: ops.merge_pseudo_labels(Z, OLD, Y, prior=PRIOR),
    ),
    (
        ValueError,
        "given together, got prior_weight alone; pass prior",
        lambda: ops.pseudo_label_loss(Z, Z, OLD, Y, prior_weight=0.5),
    ),
    (ValueError, "prior must have the batch, height and width of localizer_scores", lambda: mixed(PRIOR[:1])),
    (ValueError, "prior must have the batch, height and width of localizer_scores", lambda: mixed(PRIOR[:, :, :2])),
    (ValueError, "the 2 new classes of 5, of which 3 are old, got 5; leave the old classes out", lambda: mixed(Z)),
    (ValueError, "the 2 new classes of 5, of which 3 are old, got 1$", lambda: mixed(PRIOR[:, :1])),
    (ValueError, "the 0 new classes of 5", lambda: mixed(PRIOR, old=Z)),
    (ValueError, r"prior must be \(B, N, H, W\), got shape \(2, 4, 4\)", lambda: mixed(PRIOR[0])),
    (TypeError, "prior must be float64, float32, bfloat16 or float16, got torch.int64", lambda: mixed(PRIOR.long())),
    (ValueError, "prior_weight must be within 0..1, got 1.5", lambda: mixed(PRIOR, 1.5)),
    (ValueError, r"image must be \(B, 3, H, W\)", lambda: ops.pamr(Z, Z)),
    (ValueError, "one batch size", lambda: ops.pamr(IMAGE[:1], Z)),
    (ValueError, "leave the background column out", lambda: ops.pamr(IMAGE, Z, image_labels=torch.ones(Z.shape[:2]))),
    (ValueError, "iterations must be at least 1", lambda: ops.pamr(IMAGE, Z, iterations=0)),
    (ValueError, "dilations must be", lambda: ops.pamr(IMAGE, Z, dilations=())),
    (ValueError, "dilations must be", lambda: ops.pamr(IMAGE, Z, dilations=(1, 0))),
    (ValueError, r"par: image must be \(B, 3, H, W\)", lambda: ops.par(Z, Z)),
    (TypeError, "par: mask must be float64, float32, bfloat16 or float16", lambda: ops.par(IMAGE, Z.long())),
    (ValueError, "par: iterations must be at least 1, got 0", lambda: ops.par(IMAGE, Z, iterations=0)),
    (ValueError, "par: dilations must be", lambda: ops.par(IMAGE, Z, dilations=(1, 0))),
    (TypeError, "edge must be float64", lambda: ops.random_walk(Z, Z[:, 0].long())),
    (TypeError, "edge must be a tensor", lambda: ops.random_walk(Z, 0.5)),  # type: ignore[arg-type]
    (ValueError, r"edge must be \(B, H, W\) or \(B, 1, H, W\), got shape", lambda: ops.random_walk(Z, Z)),
    (ValueError, r"edge must be \(B, H, W\) or \(B, 1, H, W\), got shape", lambda: ops.random_walk(Z, Z[0, 0])),
    (ValueError, "edge must have the batch, height and width", lambda: ops.random_walk(Z, Z[:1, 0])),
    (ValueError, "edge must have the batch, height and width", lambda: ops.random_walk(Z, Z[:, 0, 1:])),
    (ValueError, "radius must be within 1..8, got 0", lambda: ops.random_walk(Z, Z[:, 0], radius=0)),
    (ValueError, "radius must be within 1..8, got 9", lambda: ops.random_walk(Z, Z[:, 0], radius=9)),
    (ValueError, "beta must be positive, got 0", lambda: ops.random_walk(Z, Z[:, 0], beta=0)),
    (ValueError, "steps must be at least 0, got -1", lambda: ops.random_walk(Z, Z[:, 0], steps=-1)),
    (ValueError, "ignore_index must not be one of the classes", lambda: ops.confident_labels(Z, Y, ignore_index=4)),
    (TypeError, "labels must be integers", lambda: ops.balanced_cross_entropy(Z, LABELS.float(), COUNTS, Y)),
    (ValueError, r"labels must be \(B, H, W\)", lambda: ops.balanced_cross_entropy(Z, LABELS[:, :3], COUNTS, Y)),
    (ValueError, r"counts must be \(B, C\)", lambda: ops.balanced_cross_entropy(Z, LABELS, COUNTS[:, :3], Y)),
    (TypeError, "counts must be integers", lambda: ops.balanced_cross_entropy(Z, LABELS, COUNTS.float(), Y)),
    (ValueError, "ignore_index", lambda: ops.balanced_cross_entropy(Z, LABELS, COUNTS, Y, ignore_index=0)),
    (TypeError, "labels must be integers", lambda: ops.upsampled_soft_margin_loss(Z, LABELS.float())),
    (ValueError, r"labels must be \(B, H, W\)", lambda: ops.upsampled_soft_margin_loss(Z, LABELS[0])),
    (ValueError, "B = 2", lambda: ops.upsampled_cross_entropy(Z, LABELS[:1])),
    (ValueError, "size must be", lambda: ops.upsampled_argmax(Z, (0, 4))),
    (ValueError, "255 with 300 classes", lambda: ops.upsampled_soft_margin_loss(MANY, LABELS)),
    (ValueError, "255 with 300 classes", lambda: ops.upsampled_cross_entropy(MANY, LABELS)),
    (ValueError, "either maps, or .* got none of them", lambda: ops.prior_loss(Z, Y)),
    (ValueError, "got maps and old_logits", lambda: ops.prior_loss(Z, Y, maps=Z[:, :2], old_logits=OLD)),
    (ValueError, "got similarity", lambda: ops.prior_loss(Z, Y, similarity=SQUARE)),
    (ValueError, "maps must have the batch, .* resize", lambda: ops.prior_loss(Z, Y, maps=Z[:, :2, :2])),
    (ValueError, "maps has 6 classes, more than the 5", lambda: ops.prior_loss(Z, Y, maps=torch.zeros(2, 6, 4, 4))),
    (TypeError, "maps must be float64", lambda: ops.prior_loss(Z, Y, maps=Z[:, :2].byte())),
    (ValueError, r"similarity must be \(C, C\) = \(5, 5\)", lambda: by_names(similarity=SQUARE[:4, :4])),
    (TypeError, "similarity must be float64", lambda: by_names(similarity=SQUARE.long())),
    (ValueError, "all 5 classes of scores, so that none is new", lambda: by_names(old_logits=Z)),
    (ValueError, r"image_labels must be \(B, L\) .* each of the 2", lambda: ops.prior_loss(Z, Y[:, :1], maps=Z[:, :2])),
    (TypeError, "image_labels must be bool", lambda: ops.prior_loss(Z, Y + 0j, maps=Z[:, :2])),
    (ValueError, "one device", lambda: ops.localization_prior_loss(Z, OLD.to("meta"))),
]


@pytest.mark.parametrize(("error", "text", "call"), REFUSED, ids=[f"{i}" for i in range(len(REFUSED))])
def test_refused(error, text, call):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("op", OPS)
def test_every_op_looks_at_its_first_argument(op):
    case = cases.case(op, "refused", cases.SHAPES["odd"], torch.float32)
    first, *others = case.args
    for bad, error in ((first.tolist(), TypeError), (first.long(), TypeError), (first[0], ValueError)):
        with pytest.raises(
            error, match=f"^{op}: {next(iter(inspect.signature(getattr(ops, op)).parameters))} must be "
        ):
            getattr(ops, op)(bad, *others, **case.kwargs)


def tensors_of(case):
    return [key for key, value in (*enumerate(case.args), *case.kwargs.items()) if isinstance(value, torch.Tensor)]


ELSEWHERE = [
    pytest.param(case, key, id=f"{case.op}-{key}")
    for case in cases.every(torch.float32)
    # those that have tensors as options
    if case.name == "odd" or case.name in ("image_weight", "labelled", "names_odd", "prior")
    for key in (tensors_of(case)[1:] if case.name == "odd" else [k for k in tensors_of(case) if isinstance(k, str)])
]


@pytest.mark.parametrize(("case", "key"), ELSEWHERE)
def test_tensors_on_two_devices(case, key):
    args, kwargs = list(case.args), dict(case.kwargs)
    where = kwargs if isinstance(key, str) else args
    where[key] = where[key].to("meta")
    with pytest.raises(ValueError, match=f"^{case.op}: all tensors must be on one device, got "):
        getattr(ops, case.op)(*args, **kwargs)


@pytest.mark.parametrize("op", OPS)
def test_signature_is_that_of_the_reference(op):
    public, definition = getattr(ops, op), getattr(reference, op)
    assert inspect.signature(public) == inspect.signature(definition)
    assert public.__doc__ and definition.__doc__

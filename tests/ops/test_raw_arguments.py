"""The raw ops refuse what their kernels would read outside of; the text names op, argument, expected and got."""

import pytest
import torch

import wilson.ops  # noqa: F401  # registers the raw ops
from wilson.ops import _library

pytestmark = pytest.mark.skipif(not _library.has_kernel("pamr", "CPU"), reason="installed without compiled kernels")

RAW = torch.ops.wilson
Z = torch.zeros(2, 5, 4, 4)
OLD = torch.zeros(2, 3, 4, 4)
Y = torch.zeros(2, 4)
LABELS = torch.zeros(2, 4, 4, dtype=torch.long)
COUNTS = torch.zeros(2, 5, dtype=torch.long)
EDGE = torch.zeros(2, 1, 4, 4)
IMAGE = torch.zeros(2, 3, 4, 4)
PRIOR = torch.zeros(2, 2, 4, 4)
BC = torch.zeros(2, 5)
ONE = torch.tensor(1.0)

REFUSED = [
    (
        r"ngwp_focal_pool: scores must be \(B, C, H, W\), empty in its batch only, got \(5, 4, 4\)",
        lambda: RAW.ngwp_focal_pool(Z[0], 1.0, 3.0, 0.01, True),
    ),
    (
        r"mass must be \(B, C\) of a map \(2, 5, 4, 4\), got \(2, 4\)",
        lambda: RAW.ngwp_focal_pool_backward(BC, Z, Y, BC, 1.0, 3.0, 0.01, True),
    ),
    (
        "score must be float32, got float64",
        lambda: RAW.ngwp_focal_pool_backward(BC, Z, BC, BC.double(), 1.0, 3.0, 0.01, True),
    ),
    (
        r"old_logits must have the batch, height and width of scores \(2, 5, 4, 4\), got \(1, 3, 4, 4\)",
        lambda: RAW.localization_prior_loss(Z, OLD[:1]),
    ),
    ("old_logits must have at most the 3 classes of scores, got 5", lambda: RAW.localization_prior_loss(OLD, Z)),
    (
        r"targets must have the classes of logits \(2, 5, 4, 4\), got \(2, 3, 4, 4\)",
        lambda: RAW.soft_margin_loss(Z, OLD, None),
    ),
    (r"image_weight must be \(B,\) with B = 2, got \(3,\)", lambda: RAW.soft_margin_loss(Z, Z, torch.zeros(3))),
    (r"logits must have two classes or more, got \(2, 1, 4, 4\)", lambda: RAW.one_versus_rest(Z[:, :1])),
    (
        r"grad must have the classes of logits \(2, 5, 4, 4\), got \(2, 3, 4, 4\)",
        lambda: RAW.one_versus_rest_backward(OLD, Z),
    ),
    (
        r"image_labels must be \(B, C-1\) of a map \(2, 5, 4, 4\), got \(2, 5\)",
        lambda: RAW.merge_pseudo_labels(Z, OLD, BC, 0.5, None, False, None, 0.0),
    ),
    (
        r"localizer_scores must have the classes of logits \(2, 3, 4, 4\), got \(2, 5, 4, 4\)",
        lambda: RAW.pseudo_label_loss(OLD, Z, OLD, Y, 0.5, None, False, None, 0.0, False),
    ),
    (
        r"prior must have the batch, height and width of localizer_scores \(2, 5, 4, 4\), got \(1, 2, 4, 4\)",
        lambda: RAW.merge_pseudo_labels(Z, OLD, Y, 0.5, None, False, PRIOR[:1], 0.5),
    ),
    (
        "prior must have the 2 new classes of 5, of which 3 are old, got 1",
        lambda: RAW.pseudo_label_loss(Z, Z, OLD, Y, 0.5, None, False, PRIOR[:, :1], 0.5, False),
    ),
    (
        "prior must have the 0 new classes of 5, of which 5 are old, got 2",
        lambda: RAW.merge_pseudo_labels(Z, Z, Y, 0.5, None, False, PRIOR, 0.0),
    ),
    (
        "merge_pseudo_labels: prior must be float64, float32, bfloat16 or float16",
        lambda: RAW.merge_pseudo_labels(Z, OLD, Y, 0.5, None, False, PRIOR.bool(), 0.5),
    ),
    ("expected either maps, or similarity with old_logits", lambda: RAW.prior_loss(Z, Y, None, None, None)),
    ("expected either maps, or similarity with old_logits", lambda: RAW.prior_loss(Z, Y, Z, None, OLD)),
    (
        r"maps must have the batch, height and width of scores \(2, 5, 4, 4\), got \(1, 5, 4, 4\)",
        lambda: RAW.prior_loss(Z, BC, Z[:1], None, None),
    ),
    ("maps must have at most the 3 classes of scores, got 5", lambda: RAW.prior_loss(OLD, BC, Z, None, None)),
    (
        r"similarity must be \(C, C\) of scores \(2, 5, 4, 4\), got \(5, 4\)",
        lambda: RAW.prior_loss_backward(ONE, Z, Y, None, torch.ones(5, 4), OLD),
    ),
    (
        "old_logits must have fewer classes than the 5 of scores, got 5",
        lambda: RAW.prior_loss(Z, Y, None, torch.ones(5, 5), Z),
    ),
    (
        r"image_labels must be \(B, L\) with B = 2 and L >= 2, got \(2, 1\)",
        lambda: RAW.prior_loss(Z, Y[:, :1], None, torch.ones(5, 5), OLD),
    ),
    (r"factor must be \(B,\) with B = 2, got \(\)", lambda: RAW.pseudo_label_loss_backward(ONE, ONE, Z)),
    (r"image must be \(B, 3, H, W\) with B = 2, got \(2, 5, 4, 4\)", lambda: RAW.pamr(Z, Z, None, 1, [1])),
    ("iterations must be at least 1, got 0", lambda: RAW.pamr(IMAGE, Z, None, 0, [1])),
    (r"dilations must be at least 1 each, and one or more, got \(1, 0\)", lambda: RAW.pamr(IMAGE, Z, None, 1, [1, 0])),
    (r"par: image must be \(B, 3, H, W\) with B = 2, got \(2, 5, 4, 4\)", lambda: RAW.par(Z, Z, None, 1, [1])),
    (r"par: dilations must be at least 1 each, and one or more, got \(\)", lambda: RAW.par(IMAGE, Z, None, 1, [])),
    (r"edge must be \(B, 1, H, W\), got \(2, 5, 4, 4\)", lambda: RAW.random_walk(Z, Z, 5, 10.0, 1)),
    ("edge must have the batch, height and width of scores", lambda: RAW.random_walk(Z, EDGE[:1], 5, 10.0, 1)),
    ("radius must be within 1..8, got 0", lambda: RAW.random_walk(Z, EDGE, 0, 10.0, 1)),
    ("radius must be within 1..8, got 9", lambda: RAW.random_walk(Z, EDGE, 9, 10.0, 1)),
    ("beta must be positive, got 0", lambda: RAW.random_walk(Z, EDGE, 5, 0.0, 1)),
    ("steps must be at least 0, got -1", lambda: RAW.random_walk(Z, EDGE, 5, 10.0, -1)),
    (
        r"labels must be \(B, H, W\) of scores \(2, 5, 4, 4\), got \(2, 3, 4\)",
        lambda: RAW.balanced_cross_entropy(Z, LABELS[:, :3], COUNTS, Y, 255),
    ),
    (
        r"counts must be \(B, C\) of a map \(2, 5, 4, 4\), got \(2, 4\)",
        lambda: RAW.balanced_cross_entropy(Z, LABELS, COUNTS[:, :4], Y, 255),
    ),
    (
        r"labels must be \(B, H', W'\) with B = 2 and no empty side, got \(4, 4\)",
        lambda: RAW.upsampled_soft_margin_loss(Z, LABELS[0], 255, False, False),
    ),
    ("height and width must be at least 1, got 0 and 4", lambda: RAW.upsampled_argmax(Z, 0, 4, False)),
]


@pytest.mark.parametrize(("text", "call"), REFUSED, ids=[f"{i}" for i in range(len(REFUSED))])
def test_refused(text, call):
    with pytest.raises(RuntimeError, match=text):
        call()

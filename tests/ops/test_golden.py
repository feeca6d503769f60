"""The reference agrees with the published code: its inputs, outputs and gradients in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wilson import ops
from wilson.ops import reference

FOLDER = Path(__file__).parents[1] / "golden"
FILES = sorted(
    path
    for path in FOLDER.glob("*.npz")
    if not path.stem.startswith(("names", "par", "walk"))  # tests/methods; test_par; test_walk.py
)
MODULES = {"reference": reference, "ops": ops}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request):
    return {key: torch.as_tensor(value) for key, value in np.load(request.param).items()}


@pytest.fixture(params=MODULES)
def module(request):
    return MODULES[request.param]


def assert_relative(actual, expected, tolerance=1e-9):
    error = (actual.double() - expected.double()).abs().max()
    assert error <= tolerance * expected.double().abs().max(), f"relative error {error / expected.abs().max():.2e}"


def gradient(loss, wrt):
    return torch.autograd.grad(loss, wrt)[0]


def test_files_are_there():
    assert [path.stem for path in FILES] == ["hard_labels", "many_classes", "voc_small"]


def test_pooling(golden, module):
    z = golden["z"].requires_grad_()
    pooled = module.ngwp_focal_pool(z)
    assert_relative(pooled, golden["pool"])
    assert_relative(gradient((pooled * golden["pool_grad_out"]).sum(), z), golden["pool_grad_z"])
    assert_relative(module.ngwp_focal_pool(z, focal=False), golden["pool_nofocal"])


def test_classification(golden, module):
    z, old, y = golden["z"].requires_grad_(), int(golden["n_old"]), golden["labels"]
    loss = F.binary_cross_entropy_with_logits(module.ngwp_focal_pool(z)[:, old:], y[:, old - 1 :])
    assert_relative(loss, golden["cls"])
    assert_relative(gradient(loss, z), golden["cls_grad_z"])
    mean = F.binary_cross_entropy_with_logits(z.mean((2, 3))[:, old:], y[:, old - 1 :])
    assert_relative(mean, golden["cls_gap"])


def test_localization_prior(golden, module):
    z = golden["z"].requires_grad_()
    loss = module.localization_prior_loss(z, golden["old_logits"])
    assert_relative(loss, golden["loc"])
    assert_relative(gradient(loss, z), golden["loc_grad_z"])


def test_self_supervised_segmentation(golden, module):
    z, y = golden["z"].requires_grad_(), golden["labels"]
    small = F.interpolate(golden["image"], size=z.shape[2:], mode="bilinear", align_corners=True)
    assert_relative(small, golden["image_small"])
    assert_relative(z.softmax(1), golden["pamr_in"])
    refined = module.pamr(small, golden["pamr_in"])
    assert_relative(refined, golden["pamr_out"])
    labels, counts = module.confident_labels(refined, y)
    masks = F.one_hot(torch.where(labels == 255, z.shape[1], labels), z.shape[1] + 1)[..., :-1].movedim(-1, 1)
    assert torch.equal(masks.double(), golden["pseudo_mask"])
    assert torch.equal(counts, masks.sum((2, 3)))
    loss = module.balanced_cross_entropy(z, labels, counts, y)
    assert_relative(loss, golden["sss"])
    assert_relative(gradient(loss, z), golden["sss_grad_z"])


def test_segmentation(golden, module):
    s, alpha = golden["p"].requires_grad_(), float(golden["alpha"])
    inputs = (golden["z"], golden["old_logits"], golden["labels"])
    targets, image_weight = module.merge_pseudo_labels(*inputs, alpha=alpha)
    assert_relative(targets, golden["target"])
    assert torch.equal(image_weight, golden["image_weight"])
    for loss in (
        module.pseudo_label_loss(s, *inputs, alpha=alpha),
        module.soft_margin_loss(s, targets, image_weight=image_weight),
    ):
        assert_relative(loss, golden["seg"])
        assert_relative(gradient(loss, s), golden["seg_grad_p"])


def test_base_step(golden, module):
    low = golden["low"].requires_grad_()
    loss = module.upsampled_soft_margin_loss(low, golden["label"])
    assert_relative(loss, golden["base"], 1e-6)  # the published value carries float32 rounding
    assert_relative(gradient(loss, low), golden["base_grad_low"], 1e-6)


def test_par(module):
    """As Ru et al. published it."""
    golden = {key: torch.as_tensor(value) for key, value in np.load(FOLDER / "par_small.npz").items()}
    options = {"iterations": int(golden["iterations"]), "dilations": golden["dilations"].tolist()}
    assert_relative(module.par(golden["image"], golden["mask"], **options), golden["out"], 1e-10)
    assert_relative(module.par(golden["image"], golden["mask"]), golden["out"], 1e-10)  # its options are the defaults

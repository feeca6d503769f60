"""Patched decode heads of mmsegmentation give the losses and the gradients of those that are not patched."""

import importlib
import warnings
from typing import Any

import pytest
import torch

from tests.support import decode_heads
from wilson import ops, patch

CLASSES = 5
CE = {"type": "CrossEntropyLoss", "loss_name": "loss_ce"}
pytestmark = [
    pytest.mark.parametrize("library", ["stand-in", "mmsegmentation"]),
    pytest.mark.filterwarnings("ignore:Default ``avg_non_ignore`` is False", "ignore:threshold", "ignore:For binary"),
]


@pytest.fixture(autouse=True)
def head_of(library, monkeypatch):
    decode_heads.put_in(library, monkeypatch)
    base = importlib.import_module(decode_heads.MODULE).BaseDecodeHead

    def make(**options):
        torch.manual_seed(0)
        options = {"num_classes": CLASSES, "dropout_ratio": 0.0, **options}
        head = type("Head", (base,), {"forward": lambda self, inputs: self.conv_seg(inputs)})(8, 8, **options)
        return head.double()

    return make


@pytest.fixture
def calls(monkeypatch):
    """Which losses were called."""
    found = []
    for name in ("upsampled_cross_entropy", "upsampled_soft_margin_loss"):
        op = getattr(ops, name)

        def counted(*args, op=op, name=name, **options):
            found.append(name)
            return op(*args, **options)

        monkeypatch.setattr(ops, name, counted)
    return found


def run(head, low=(8, 6), size=(32, 24), labels=CLASSES, ignored=255):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, 8, *low, generator=generator, dtype=torch.float64)
    mask = torch.randint(0, labels, (2, *size), generator=generator)
    mask[:, :5] = ignored
    head.zero_grad()
    losses = head.loss_by_feat(head(features), decode_heads.samples_of(mask))
    sum(value.sum() for name, value in losses.items() if "loss" in name).backward()
    return {name: value.detach() for name, value in losses.items()}, [p.grad.clone() for p in head.parameters()]


def assert_equal(found, usual):
    assert list(found[0]) == list(usual[0]) and found[0]["acc_seg"].shape == usual[0]["acc_seg"].shape
    assert 0 < usual[0]["acc_seg"] < 100
    torch.testing.assert_close(found, usual, rtol=1e-6, atol=1e-9, check_dtype=False)


SERVED: dict[str, dict[str, Any]] = {
    "plain": {"loss_decode": CE},
    "mean of the counted": {"loss_decode": {**CE, "avg_non_ignore": True, "loss_weight": 0.4}},
    "sigmoid": {"loss_decode": {**CE, "use_sigmoid": True}},
    "sigmoid, mean of the counted": {"loss_decode": {**CE, "use_sigmoid": True, "avg_non_ignore": True}},
    "aligned corners": {"loss_decode": CE, "align_corners": True},
    "aligned corners, sigmoid": {"loss_decode": {**CE, "use_sigmoid": True}, "align_corners": True},
    "two losses": {"loss_decode": [CE, {**CE, "use_sigmoid": True, "loss_name": "loss_bce"}]},
    "two losses of one name": {"loss_decode": [CE, {**CE, "loss_weight": 0.5}]},
}


@pytest.mark.parametrize("what", SERVED)
def test_equal_losses_and_gradients(what, head_of, calls):
    head = head_of(**SERVED[what])
    usual = run(head)
    with patch.mmseg():
        found = run(head)
    expected = ["upsampled_soft_margin_loss" if "sigmoid" in what else "upsampled_cross_entropy"]
    both = ["upsampled_cross_entropy", "upsampled_soft_margin_loss"]
    assert calls == {"two losses": both, "two losses of one name": 2 * expected}.get(what, expected)
    assert_equal(found, usual)


OWN_WAY: dict[str, dict[str, Any]] = {
    "class weights": {"loss_decode": {**CE, "class_weight": [1.0, 2.0, 3.0, 4.0, 0.5]}},
    "reduction 'sum'": {"loss_decode": {**CE, "reduction": "sum"}},
    "DiceLoss is no cross-entropy": {"loss_decode": [CE, {"type": "DiceLoss"}]},
    "Sampler weighs the pixels": {"loss_decode": CE, "sampler": {"type": "OHEMPixelSampler", "thresh": 0.7}},
    "one output": {"loss_decode": {**CE, "use_sigmoid": True}, "num_classes": 2, "out_channels": 1},
}
OTHER: dict[str, dict[str, Any]] = {
    "class weights": {"ignored": 0},  # mmsegmentation looks up the weight of the label to skip, too
    "one output": {"labels": 2},
}


@pytest.mark.parametrize("reason", OWN_WAY)
def test_what_is_not_served_goes_its_own_way(reason, head_of, calls):
    head, options = head_of(**OWN_WAY[reason]), OTHER.get(reason, {})
    usual = run(head, **options)
    with patch.mmseg():
        with pytest.warns(UserWarning, match=f"wilson.patch.mmseg: .*{reason}.*the library's own loss"):
            found = run(head, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no second warning
            run(head, **options)
    assert not calls
    torch.testing.assert_close(found, usual, rtol=0, atol=0)

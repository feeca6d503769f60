"""What infinite and undefined numbers mean: the reference's head says it, and every kernel gives the same."""

import pytest
import torch

from tests.support import infinities
from wilson import ops
from wilson.ops import reference

INF, NAN = torch.inf, torch.nan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", infinities.OPS)
def test_as_the_reference(op, dtype):
    for case in [*infinities.of(op, dtype=dtype), *infinities.of(op, infinities.MANY, dtype)]:
        infinities.assert_as_the_reference(case, getattr(ops, op))


@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
class TestMeaning:
    def test_a_class_ruled_out_leaves_a_softmax_over_the_others(self, module):
        z = torch.randn(2, 5, 4, 6)
        ruled_out = torch.cat([z[:, :3], torch.full_like(z[:, 3:], -INF)], 1).requires_grad_()
        alone = z[:, :3].clone().requires_grad_()
        pooled, expected = module.ngwp_focal_pool(ruled_out), module.ngwp_focal_pool(alone)
        torch.testing.assert_close(pooled[:, :3], expected)
        assert pooled[:, 3:].isfinite().all()
        (grad,) = torch.autograd.grad(pooled[:, :3].sum(), ruled_out)
        (grad_alone,) = torch.autograd.grad(expected.sum(), alone)
        torch.testing.assert_close(grad[:, :3], grad_alone)
        assert grad[:, 3:].abs().max() == 0
        mask = torch.randint(0, 3, (2, 9, 11))
        entropy = module.upsampled_cross_entropy(ruled_out, mask)
        torch.testing.assert_close(entropy, module.upsampled_cross_entropy(alone, mask))
        assert torch.equal(module.upsampled_argmax(ruled_out, (9, 11)), module.upsampled_argmax(alone, (9, 11)))

    def test_ruled_out_costs_nothing_without_a_target(self, module):
        s = torch.zeros(1, 2, 3, 3)
        s[:, 1] = -INF
        q = torch.full_like(s, 0.5)
        assert module.soft_margin_loss(s, q) == INF
        q[:, 1] = 0
        torch.testing.assert_close(module.soft_margin_loss(s, q), torch.tensor(2.0).log())
        mask = torch.zeros(1, 5, 5, dtype=torch.long)
        torch.testing.assert_close(module.upsampled_soft_margin_loss(s, mask), torch.tensor(2.0).log())
        assert module.upsampled_soft_margin_loss(s, mask + 1) == INF
        assert module.upsampled_cross_entropy(s, mask + 1) == INF

    def test_the_sigmoid_of_one_versus_rest_is_the_softmax(self, module):
        for case in infinities.of("one_versus_rest", dtype=torch.float64):
            (z,) = case.args
            logits = module.one_versus_rest(z)
            torch.testing.assert_close(logits.sigmoid(), z.softmax(1), equal_nan=True)
            assert torch.equal(logits == -INF, z.softmax(1) == 0)

    def test_one_versus_rest_of_classes_ruled_out(self, module):
        z = torch.randn(2, 5, 4, 6, dtype=torch.float64)
        for left in (1, 2, 3):
            ruled_out = z.clone()
            ruled_out[:, left:] = -INF
            ruled_out.requires_grad_()
            logits = module.one_versus_rest(ruled_out)
            assert (logits[:, left:] == -INF).all()
            alone = z[:, :left].clone().requires_grad_()
            expected = module.one_versus_rest(alone) if left > 1 else torch.full_like(alone, INF)
            torch.testing.assert_close(logits[:, :left], expected)
            weights = torch.randn_like(expected) if left > 1 else torch.zeros_like(expected)
            (grad,) = torch.autograd.grad(logits, ruled_out, torch.cat([weights, 0 * z[:, left:]], 1))
            assert grad.isfinite().all() and grad[:, left:].abs().max() == 0
            if left > 1:
                torch.testing.assert_close(grad[:, :left], torch.autograd.grad(expected, alone, weights)[0])

    def test_argmax_is_that_of_torch(self, module):
        s = torch.randn(1, 4, 3, 3)
        for undefined in (0, 1, 3):
            bad = s.clone()
            bad[:, undefined:] = NAN
            assert (module.upsampled_argmax(bad, (6, 6)) == undefined).all()
        assert (module.upsampled_argmax(torch.full_like(s, -INF), (6, 6)) == 0).all()

    def test_pixels_that_do_not_count_may_hold_anything(self, module):
        s = torch.zeros(1, 3, 4, 4)
        s[0, :, 2:] = NAN
        labels = torch.zeros(1, 4, 4, dtype=torch.long)
        labels[:, 1:] = 255  # the second row, too: the third has a share of 0 in it, and 0 * NaN is NaN
        labels[:, 0, 2:] = 1
        counts = torch.tensor([[2, 2, 0]])
        for call in (
            lambda z: module.upsampled_cross_entropy(z, labels),
            lambda z: module.upsampled_soft_margin_loss(z, labels),
            lambda z: module.balanced_cross_entropy(z, labels, counts, torch.tensor([[1, 0]])),
        ):
            z = s.clone().requires_grad_()
            loss = call(z)
            (grad,) = torch.autograd.grad(loss, z)
            assert loss.isfinite() and grad[:, :, 0].isfinite().all() and grad[:, :, 0].abs().sum() > 0
            assert grad[:, :, 3].abs().max() == 0

    def test_a_class_with_an_undefined_score_claims_nothing(self, module):
        r = torch.rand(1, 3, 4, 4) * 0.1
        r[0, 1, 1, 1], r[0, 2, 2, 2], r[0, 1, 3, 3] = 0.9, 0.9, NAN
        _, counts = module.confident_labels(r, torch.ones(1, 2))
        assert counts.tolist() == [[0, 0, 1]]

    @pytest.mark.parametrize("share", [0.5, 0.25])
    def test_image_labels_multiply(self, module, share):
        z, old = torch.randn(2, 5, 4, 4) * 3, torch.zeros(2, 1, 4, 4)
        labels = torch.tensor([[share, 0, 1, 0], [0, share, share, 1]])
        targets, weight = module.merge_pseudo_labels(z, old, labels, alpha=0.5, background=1.0)
        m = z.softmax(1) * torch.cat([torch.ones(2, 1), labels], 1)[:, :, None, None]
        torch.testing.assert_close(targets, 0.5 * m + 0.5 * (m == m.amax(1, keepdim=True)).float())
        assert weight.tolist() == [1, 1]

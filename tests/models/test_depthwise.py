"""Dilated depthwise convolutions and their gradients equal PyTorch's."""

import copy

import pytest
import timm
import torch
from torch import nn

from wilson.models.backbone import TimmBackbone
from wilson.models.depthwise import DilatedDepthwise, quicken


def conv(**options) -> nn.Conv2d:
    return nn.Conv2d(6, 6, groups=6, dtype=torch.float64, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 5, "padding": 4, "dilation": 2},
        {"kernel_size": 3, "padding": 4, "dilation": 4, "bias": False},
        {"kernel_size": (3, 5), "padding": (1, 8), "dilation": (3, 2)},
        {"kernel_size": 3, "dilation": 2},
        {"kernel_size": 3, "padding": (4, 0), "dilation": (2, 1)},
    ],
)
def test_output_and_gradients_are_pytorchs(options):
    plain = conv(**options)
    quick = copy.deepcopy(plain)
    quicken(quick)
    assert type(quick) is DilatedDepthwise
    image = torch.randn(2, 6, 12, 15, dtype=torch.float64)
    direction = torch.randn_like(plain(image))
    results = []
    for module in (plain, quick):
        x = image.clone(memory_format=torch.channels_last).requires_grad_()
        y = module(x)
        y.backward(direction)
        results.append([y, x.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    made = results[1][0].grad_fn
    assert "_Convolution" in (made if quick.bias is None else made.next_functions[0][0]).name()


@pytest.mark.parametrize(
    "other",
    [
        conv(kernel_size=3, padding=1),
        conv(kernel_size=3, padding=2, dilation=2, stride=2),
        conv(kernel_size=3, padding=5, dilation=2),
        conv(kernel_size=3, padding=2, dilation=2, padding_mode="reflect"),
        conv(kernel_size=3, padding="same", dilation=2),
        nn.Conv2d(6, 12, 3, groups=6, padding=2, dilation=2),
    ],
)
def test_other_convolutions_stay(other):
    quicken(other)
    assert type(other) is nn.Conv2d


def test_frozen_weights_and_images_get_no_gradient():
    quick = conv(kernel_size=3, padding=2, dilation=2)
    quicken(quick)
    image = torch.randn(1, 6, 5, 5, dtype=torch.float64)
    quick(image).sum().backward()
    assert image.grad is None and quick.weight.grad is not None
    quick.requires_grad_(False)
    assert not quick(image).requires_grad
    x = image.clone().requires_grad_()
    quick(x).sum().backward()
    assert x.grad is not None


def test_gradients_have_gradients_and_transforms():
    quick = conv(kernel_size=3, padding=2, dilation=2)
    quicken(quick)
    x = torch.randn(1, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = quick.weight.detach().clone().requires_grad_()

    def applied(x, weight):
        return torch.func.functional_call(quick, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(applied, (x, weight)) and torch.autograd.gradgradcheck(applied, (x, weight))
    (expected,) = torch.autograd.grad(quick(x).pow(2).sum(), x)
    torch.testing.assert_close(torch.func.grad(lambda x: quick(x).pow(2).sum())(x), expected)


def test_mixed_precision_is_pytorchs():
    quick = conv(kernel_size=3, padding=2, dilation=2).float()
    quicken(quick)
    with torch.autocast("cpu", torch.bfloat16):
        y = quick(torch.randn(1, 6, 5, 5))
    y.float().sum().backward()
    assert y.dtype is torch.bfloat16 and "Convolution" in y.grad_fn.name() and "_Convolution" not in y.grad_fn.name()


def test_a_backbone_keeps_its_names_and_features():
    backbone = TimmBackbone("tf_efficientnet_lite0", 16)
    made = [module for module in backbone.modules() if isinstance(module, DilatedDepthwise)]
    assert [module.kernel_size for module in made] == [(5, 5)] * 3 + [(3, 3)]
    plain = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(-1,), output_stride=16)
    plain.load_state_dict(backbone.body.state_dict())
    image = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone.eval()(image), plain.eval()(image)[-1])

"""The Triton kernels on the CPU: `test_triton.py` runs this file by pytest in a process where Triton interprets.

The interpreter is chosen by TRITON_INTERPRET=1 before triton is imported, and holds for the whole process.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

import cases
import tolerance
from wilson.kernels import pooling
from wilson.ops import reference

assert os.environ.get("TRITON_INTERPRET") == "1", "run through test_triton.py"

_cast = InterpreterBuilder.cast_impl


def _cast_and_round(self: InterpreterBuilder, source: TensorHandle, to: tl.dtype) -> TensorHandle:
    """The interpreter cuts float32 off to bfloat16; compiled kernels round, and so does this."""
    if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
        return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
    return _cast(self, source, to)


InterpreterBuilder.cast_impl = _cast_and_round

POOLING = [case for dtype in cases.DTYPES for case in cases.pooling(dtype)]
OPTIONS = {"eps": 1.0, "gamma": 3.0, "lam": 0.01, "focal": True}


class Pool(torch.autograd.Function):
    """The launchers under autograd, as wilson.ops has them."""

    @staticmethod
    def forward(ctx, scores, *options):
        pooled, mass, score = pooling.ngwp_focal_pool(scores, *options)
        ctx.save_for_backward(scores, mass, score)
        ctx.options = options
        return pooled

    @staticmethod
    def backward(ctx, grad_pooled):
        scores, mass, score = ctx.saved_tensors
        grad = pooling.ngwp_focal_pool_backward(grad_pooled, scores, mass, score, *ctx.options)
        assert grad.dtype == scores.dtype and grad.stride() == torch.empty_like(scores).stride()
        return grad, *(None for _ in ctx.options)


def pool(scores: Tensor, **options: object) -> Tensor:
    return Pool.apply(scores, *(OPTIONS | options).values())


@pytest.mark.parametrize("case", POOLING, ids=lambda case: f"{case.name}-{case.args[0].dtype}")
def test_pooling_agrees_with_the_reference(case):
    dtype = case.args[0].dtype
    value, grad = case.value_and_grad(pool)
    eager, eager_grad = case.value_and_grad(reference.ngwp_focal_pool)
    exact, exact_grad = case.double().value_and_grad(reference.ngwp_focal_pool)
    tolerance.assert_close(value, eager, exact, dtype)
    tolerance.assert_close(grad, eager_grad, exact_grad, dtype, gradient=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pooling_gradient_survives_a_large_loss_scale(dtype):
    case = next(case for case in cases.pooling(dtype) if case.name == "odd")
    _, grad = case.value_and_grad(pool, grad_scale=65536.0)
    _, eager = case.value_and_grad(reference.ngwp_focal_pool, grad_scale=65536.0)
    _, exact = case.double().value_and_grad(reference.ngwp_focal_pool, grad_scale=65536.0)
    tolerance.assert_close(grad, eager, exact, dtype, gradient=True)


def test_pooling_takes_an_expanded_gradient():
    scores = cases.Draw("expanded", cases.SHAPES["odd"], torch.float32).scores()
    (expected,) = torch.autograd.grad(reference.ngwp_focal_pool(leaf := scores.requires_grad_()).sum(), leaf)
    (grad,) = torch.autograd.grad(pool(leaf).sum(), leaf)  # the gradient of a sum has stride 0
    torch.testing.assert_close(grad, expected)


def test_pooling_of_an_image_does_not_depend_on_its_neighbours():
    scores = cases.Draw("neighbours", cases.SHAPES["long"], torch.float32).scores()
    together = pooling.ngwp_focal_pool(scores, *OPTIONS.values())
    alone = pooling.ngwp_focal_pool(scores[1:2], *OPTIONS.values())
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))

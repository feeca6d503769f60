"""The Triton kernels on the CPU: `test_triton.py` runs this file by pytest in a process where Triton interprets.

The launchers take the place of the C++ kernels in this process, so the public ops run them, autograd included. The
interpreter is chosen by TRITON_INTERPRET=1 before triton is imported, and holds for the whole process.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

from tests.support import cases
from tests.support.agreement import assert_agrees, assert_survives_loss_scale, flat, tensors
from wilson import ops
from wilson.ops import reference
from wilson.ops._registry import OPS

assert os.environ.get("TRITON_INTERPRET") == "1", "run through test_triton.py"

_cast = InterpreterBuilder.cast_impl


def _cast_and_round(self: InterpreterBuilder, source: TensorHandle, to: tl.dtype) -> TensorHandle:
    """The interpreter cuts float32 off to bfloat16; compiled kernels round, and so does this."""
    if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
        rounded = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16()
        return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)
    return _cast(self, source, to)


InterpreterBuilder.cast_impl = _cast_and_round

# At every call of a device function the interpreter puts its own functions into triton.language anew, which takes most
# of its time: once per launch and module is enough.
_prepared: set[int] = set()
_run = InterpretedFunction.run


def _launch(self: InterpretedFunction, *args, **kwargs):
    _prepared.clear()
    return _run(self, *args, **kwargs)


def _call(self: InterpretedFunction, *args, **kwargs):
    if id(self.fn.__globals__) not in _prepared:
        _prepared.add(id(self.fn.__globals__))
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


InterpretedFunction.run, InterpretedFunction.__call__ = _launch, _call

_launched: set[str] = set()


def _noting(name: str, launcher):
    def launch(*args, **kwargs):
        _launched.add(name)
        return launcher(*args, **kwargs)

    return launch


for op in OPS.values():
    launchers = importlib.import_module(f"wilson.kernels.{op.family}")
    for name in op.raw:
        torch.library.register_kernel(f"wilson::{name}", "cpu", _noting(name, getattr(launchers, name)))

# The ops with the most launches or programs take the interpreter seconds for each case: they have no large maps, and
# fewer layouts. Several tiles and blocks of classes they have in the case "blocks", which is small.
SLOW_OPS = (*cases.REFINING, "random_walk", "upsampled_soft_margin_loss", "upsampled_cross_entropy")
SLOW_CASES = ("long", "many_classes", "two_classes", "channels_last", "transposed", "expanded", "flat")
# In other dtypes than float32 the kernels differ in what loads, stores and constants round: a few cases show it.
EVERY_DTYPE = ("odd", "sliced", "extreme", "image_weight", "weighted_background", "empty_batch", "prior")


def _interpreted() -> Iterator[cases.Case]:
    for dtype in cases.DTYPES:
        for case in cases.every(dtype):
            if dtype == torch.float32 or (case.name in EVERY_DTYPE and case.op not in SLOW_OPS):
                yield case
        for op in SLOW_OPS:
            classes = 33 if op in cases.REFINING else 7  # more than a program takes at a time
            yield cases.case(op, "blocks", cases.Shape(2, classes, 3, 5, scale=1.5), dtype)


def _shortened(case: cases.Case) -> cases.Case:
    """All iterations of PAMR, and all steps of a walk, do the same: two say as much as ten."""
    if case.op == "random_walk":
        return replace(case, kwargs={**case.kwargs, "steps": min(2, case.kwargs["steps"])})
    short = case.op in cases.REFINING and "iterations" not in case.kwargs
    return replace(case, kwargs={"iterations": 2, **case.kwargs}) if short else case


EVERY = [_shortened(case) for case in _interpreted() if not (case.op in SLOW_OPS and case.name in SLOW_CASES)]
DIFFERENTIABLE = [name for name, op in OPS.items() if op.differentiable]


def of(op: str, dtype: torch.dtype) -> cases.Case:
    name = "blocks" if op in SLOW_OPS else "odd"
    return next(case for case in EVERY if case.op == op and case.name == name and case.args[0].dtype == dtype)


@pytest.mark.parametrize("case", EVERY, ids=lambda case: f"{case}-{case.args[0].dtype}")
def test_agrees_with_the_reference(case):
    _launched.clear()
    assert_agrees(case, getattr(ops, case.op))
    assert case.op in _launched
    assert not case.differentiable or _launched >= set(OPS[case.op].raw)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_survive_a_large_loss_scale(op, dtype):
    assert_survives_loss_scale(of(op, dtype), getattr(ops, op))


def test_pooling_takes_an_expanded_gradient():
    scores = of("ngwp_focal_pool", torch.float32).args[0]
    (expected,) = torch.autograd.grad(reference.ngwp_focal_pool(leaf := scores.requires_grad_()).sum(), leaf)
    (grad,) = torch.autograd.grad(ops.ngwp_focal_pool(leaf).sum(), leaf)  # the gradient of a sum has stride 0
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("op", sorted({case.op for case in EVERY}))
def test_an_image_does_not_depend_on_its_neighbours(op):
    case = of(op, torch.float32)
    function = getattr(ops, op)
    together, again = (flat(case.value_and_grad(function)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    if together[0].dim():  # a loss is a mean over the batch
        alone = function(*(a[1:2] if isinstance(a, torch.Tensor) else a for a in case.args), **case.kwargs)
        assert all(torch.equal(a, b[1:2]) for a, b in zip(tensors(alone), together, strict=False))


@pytest.mark.parametrize("op", sorted({case.op for case in EVERY}))
def test_offsets_past_31_bits(op):
    """The second class lies 2^31 elements behind the first, in memory that is reserved but for its ends not used."""
    case = _shortened(cases.case(op, "far", cases.Shape(2, 2, 3, 4, scale=2), torch.float32))
    i, near = next((i, a) for i, a in enumerate(case.args) if isinstance(a, torch.Tensor) and a.shape[1:2] == (2,))
    near = near.bfloat16()
    height, width = near.shape[2:]
    far = torch.empty(2**31 + near.numel(), dtype=torch.bfloat16)
    far = far.as_strided(near.shape, (height * width, 2**31, width, 1)).copy_(near)
    results = []
    for tensor in (near, far):
        args = list(case.args)
        args[i] = tensor
        results.append(flat(replace(case, args=tuple(args)).value_and_grad(getattr(ops, op))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

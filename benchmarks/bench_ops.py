"""Every op, forward and backward, against eager PyTorch and torch.compile of the reference.

One group per op and grid, so that the table shows the ratios; inputs are the tests', correctness is asserted first.
`confident_labels+balanced_cross_entropy` is the pair as the method uses it.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from benchmarks import measure
from tests.support import cases
from tests.support.agreement import Expected
from wilson import ops
from wilson.ops import _library, reference
from wilson.ops._registry import OPS

GRIDS = {"small": cases.SMALL, "voc": cases.VOC, "coco": cases.COCO}
BASE_GRIDS = {"small": cases.SMALL_BASE, "voc": cases.VOC_BASE, "coco": cases.COCO_BASE}
PAIR = "confident_labels+balanced_cross_entropy"
NAMES = [*OPS, PAIR]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def confident_and_balanced(module):
    def function(scores: Tensor, refined: Tensor, image_labels: Tensor) -> Tensor:
        labels, counts = module.confident_labels(refined, image_labels, **cases.EXACT_THRESHOLDS)
        return module.balanced_cross_entropy(scores, labels, counts, image_labels)

    return function


def function_of(op: str, module):
    return confident_and_balanced(module) if op == PAIR else getattr(module, op)


@functools.lru_cache(maxsize=1)  # the implementations of one op and grid come one after the other
def case_of(op: str, grid: str, dtype: torch.dtype, layout: str = "contiguous") -> cases.Case:
    shape = (BASE_GRIDS if op.startswith("upsampled") else GRIDS)[grid]
    if op != PAIR:
        return cases.case(op, grid, shape, dtype, layout=layout)
    draw = cases.Draw(f"{op}{grid}", shape, dtype, layout)
    return cases.Case("balanced_cross_entropy", grid, (draw.scores(), *cases.INPUTS["confident_labels"](draw)))


@functools.lru_cache(maxsize=1)
def expected(op: str, grid: str, dtype: torch.dtype) -> Expected:
    return Expected(case_of(op, grid, dtype), function_of(op, reference))


@pytest.mark.parametrize(
    ("dtype", "implementation"),
    [("fp32", "wilson"), ("fp32", "eager"), ("fp32", "compile"), ("bf16", "wilson"), ("bf16", "eager")],
)
@pytest.mark.parametrize("op", NAMES)
def test_forward_and_backward(benchmark, op, grid, dtype, implementation):
    if (op, implementation) == ("random_walk", "compile"):
        pytest.skip("torch.compile takes minutes for the 544 shifted sums of 8 steps")
    dtype = DTYPES[dtype]
    case = case_of(op, grid, dtype)
    function = function_of(op, ops if implementation == "wilson" else reference)
    if implementation == "compile":
        torch.compiler.reset()
        function = torch.compile(function, dynamic=False)
    expected(op, grid, dtype).assert_met_by(function)

    case = case.on(measure.DEVICE)
    call = measure.finished(measure.forward_and_backward(function, case.args, case.kwargs, case.differentiable))
    benchmark.group = f"{op} {grid} {tuple(case.args[0].shape)} {dtype}".replace("torch.", "")
    benchmark.extra_info["provider"] = provider(op) if implementation == "wilson" else implementation
    benchmark.extra_info["peak extra MB"] = round(measure.peak_extra_bytes(call) / 1e6, 2)
    benchmark.pedantic(call, rounds=measure.rounds_for(call), warmup_rounds=1)
    least = least_bytes(case)
    benchmark.extra_info["least bytes"] = least
    if benchmark.stats:
        benchmark.extra_info["GB/s of the least bytes"] = round(least / benchmark.stats.stats.median / 1e9, 2)


def provider(op: str) -> str:
    return _library.provider(op.split("+")[0], measure.DEVICE.type.upper())[0]


def least_bytes(case: cases.Case) -> int:
    """Each input read once, the gradient written once."""
    tensors = [a for a in (*case.args, *case.kwargs.values()) if isinstance(a, Tensor)]
    return sum(t.numel() * t.element_size() for t in [*tensors, *(tensors[:1] if case.differentiable else [])])

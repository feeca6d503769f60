"""Every op with a kernel of its own, forward and backward, against eager PyTorch and torch.compile of the reference.

One group per op and grid, so that the table shows the ratios; inputs are the tests', correctness is asserted first.
"""

import pytest
import torch

import cases
import tolerance
from wilson import ops
from wilson.ops import _library, reference

GRIDS = {"small": cases.SMALL, "voc": cases.VOC, "coco": cases.COCO}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KERNELS = [op for family in _library.OPS.values() for op in family if _library.has_kernel(op, "CPU")]
INPUTS = {"ngwp_focal_pool": lambda draw: (draw.scores(),)}


@pytest.fixture(params=DTYPES)
def dtype(request):
    return DTYPES[request.param]


def implementation(name, op):
    if name == "wilson":
        return getattr(ops, op)
    function = getattr(reference, op)
    return torch.compile(function, dynamic=False) if name == "compile" else function


@pytest.mark.skipif(not KERNELS, reason="no compiled kernels: installed with WILSON_BUILD=none")
@pytest.mark.parametrize("name", ["wilson", "eager", "compile"])
@pytest.mark.parametrize("op", KERNELS)
def test_forward_and_backward(benchmark, op, grid, dtype, name):
    case = cases.Case(op, grid, INPUTS[op](cases.Draw(f"{op}{grid}", GRIDS[grid], dtype)))
    function = implementation(name, op)
    value, grad = case.value_and_grad(function)  # compiles, too
    eager, eager_grad = case.value_and_grad(getattr(reference, op))
    exact, exact_grad = case.double().value_and_grad(getattr(reference, op))
    tolerance.assert_close(value, eager, exact, dtype)
    tolerance.assert_close(grad, eager_grad, exact_grad, dtype, gradient=True)

    scores = case.args[0].requires_grad_()
    weights = torch.randn_like(value)

    def forward_and_backward():
        result = function(scores, *case.args[1:])
        return torch.autograd.grad(result, scores, weights)

    benchmark.group = f"{op} {grid} {tuple(scores.shape)} {dtype}".replace("torch.", "")
    benchmark.pedantic(forward_and_backward, rounds=15, warmup_rounds=3)
    # least traffic: scores read in forward and in backward, their gradient written
    moved = 3 * scores.numel() * scores.element_size()
    benchmark.extra_info["provider"] = name if name != "wilson" else _library.provider(op, "CPU")[0]
    if benchmark.stats:
        benchmark.extra_info["GB/s of the least traffic"] = round(moved / benchmark.stats.stats.median / 1e9, 2)

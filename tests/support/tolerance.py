"""The only tolerances of the tests and benchmarks.

A kernel may err, against the reference in float64, at most twice as much as eager PyTorch in the same dtype does
(gradients three times), plus a floor relative to the largest magnitude of the float64 result.
"""

import torch
from torch import Tensor

ROUNDING = 1e-15  # of the float64 result itself, where terms of size 1 cancel
FLOOR = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def assert_close(kernel: Tensor, eager: Tensor, exact: Tensor, dtype: torch.dtype, *, gradient: bool = False) -> None:
    """`kernel` and `eager` computed from inputs of `dtype`, `exact` from the same values in float64."""
    assert kernel.shape == exact.shape, f"shape {tuple(kernel.shape)}, expected {tuple(exact.shape)}"
    assert kernel.dtype == eager.dtype, f"dtype {kernel.dtype}, expected {eager.dtype}"
    if exact.numel() == 0:
        return
    exact = exact.double()
    assert torch.isfinite(exact).all(), "the float64 result is not finite: a broken case"
    error = (kernel.double() - exact).abs().max().item()
    eager_error = (eager.double() - exact).abs().max().item()
    # float32 results of 16-bit inputs are as precise as float32; only what is rounded to 16 bits gets their floor
    allowed = (3 if gradient else 2) * eager_error + FLOOR[kernel.dtype] * exact.abs().max().item() + ROUNDING
    assert error <= allowed, f"error {error:.3e} over {allowed:.3e} (eager in {dtype}: {eager_error:.3e})"


def assert_highest(labels: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """`labels` name the highest of `exact` over classes, or one lower by no more than rounding can hide."""
    if labels.numel() == 0:
        return
    best, first = exact.max(1)
    labels = labels.long()
    named = exact.gather(1, labels.unsqueeze(1)).squeeze(1)
    floor = FLOOR[dtype if dtype == torch.float64 else torch.float32]  # what the op computes in
    short = (best - named).max().item()
    assert short <= floor * exact.abs().max().item(), f"a label's score is {short:.3e} under the highest"
    ties = named == best
    assert torch.equal(labels[ties], first[ties]), "a later class of equals was taken"

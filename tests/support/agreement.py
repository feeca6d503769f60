"""Whether an op agrees with the reference in float64 on a case: values, labels, counts and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.support import tolerance
from tests.support.cases import Case
from wilson.ops import reference


def tensors(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def flat(value_and_grad: tuple[Any, Tensor | None]) -> list[Tensor]:
    """What :meth:`Case.value_and_grad` returns as one list."""
    value, grad = value_and_grad
    return [*tensors(value), *([] if grad is None else [grad])]


class Expected:
    """What a case gives in eager PyTorch, and in float64; `definition` is the reference unless another is named."""

    def __init__(self, case: Case, definition: Callable[..., Any] | None = None):
        definition = definition or getattr(reference, case.op)
        self.case = case
        self.eager = flat(case.value_and_grad(definition))
        self.exact = flat(case.double().value_and_grad(definition))

    def assert_met_by(self, function: Callable[..., Any], device: str | torch.device | None = None) -> None:
        """Run the case, on another device if one is named, and compare what it gives."""
        case, dtype = self.case, self.case.args[0].dtype
        placed = case if device is None else case.on(device)
        results = [result.to(case.args[0].device) for result in flat(placed.value_and_grad(function))]
        if case.differentiable:  # without a gradient kernels take other branches, and store less
            with torch.no_grad():
                alone = placed.run(function).to(case.args[0].device)
            tolerance.assert_close(alone, self.eager[0], self.exact[0], dtype)
        for i, (got, eager, exact) in enumerate(zip(results, self.eager, self.exact, strict=True)):
            gradient = case.differentiable and i == len(results) - 1
            if case.op == "upsampled_argmax":
                assert got.dtype == eager.dtype and got.shape == eager.shape
                logits, size = case.double().args
                tolerance.assert_highest(got, reference.upsample(logits, size, **case.kwargs), dtype)
            elif got.is_floating_point():
                assert not gradient or got.dtype == dtype
                tolerance.assert_close(got, eager, exact, dtype, gradient=gradient)
            else:
                assert got.dtype == eager.dtype and torch.equal(got, exact)


def assert_agrees(case: Case, function: Callable[..., Any]) -> None:
    Expected(case).assert_met_by(function)


def assert_survives_loss_scale(case: Case, function: Callable[..., Any], scale: float = 65536.0) -> None:
    """A gradient in 16 bits keeps its precision under a loss scaler; what does not fit becomes infinite, never NaN."""
    dtype, definition = case.args[0].dtype, getattr(reference, case.op)
    if case.op == "one_versus_rest":  # a map in 16 bits, whose own gradient must fit: that of a mean over its elements
        scale /= case.args[0].numel()
    _, grad = case.value_and_grad(function, grad_scale=scale)
    _, eager = case.value_and_grad(definition, grad_scale=scale)
    _, exact = case.double().value_and_grad(definition, grad_scale=scale)
    assert grad is not None and eager is not None and exact is not None
    if exact.abs().max() < torch.finfo(dtype).max:
        tolerance.assert_close(grad, eager, exact, dtype, gradient=True)
    else:  # infinite, which the loss scaler sees
        assert not grad.isnan().any()

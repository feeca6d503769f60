"""The one place where an op is made known: every list of ops follows from it.

A family's file puts :func:`op` on each public function. What lists ops asks :data:`OPS`: the loader, `wilson ops`, the
README's table, the tests and the benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Op:
    """A public op."""

    name: str
    family: str  # the file that holds it, on every floor: wilson/ops, kernels, csrc/cpu, csrc/cuda
    computes: str  # one line for the README, with the paper's equation
    gradient_to: str  # the first argument's name, or empty

    @property
    def differentiable(self) -> bool:
        return bool(self.gradient_to)

    @property
    def raw(self) -> tuple[str, ...]:
        """The registered ops behind it, in the namespace `wilson`: itself, and its backward if that is an op."""
        return tuple(name for name in (self.name, f"{self.name}_backward") if hasattr(torch.ops.wilson, name))


OPS: dict[str, Op] = {}  # by name, in the order of the documentation
_NAMESPACE = torch.library.Library("wilson", "FRAGMENT")


def raw(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as `wilson::name` on every device, until a kernel takes its place on one.

    As `torch.library.custom_op` does, less the Python function that it puts before every call for autograd: the ops
    have autograd Functions of their own, and that one took 4 of the 9 us of a call on a map of one pixel.
    """

    def register(body: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(body, mutates_args=())
        _NAMESPACE.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _NAMESPACE.impl(name, body, "CompositeExplicitAutograd")
        return getattr(torch.ops.wilson, name).default

    return register


def op(computes: str, *, gradient_to: str = "") -> Callable[[Function], Function]:
    """Make a public function known as an op of the family that its module names."""

    def register(function: Function) -> Function:
        family = function.__module__.rpartition(".")[2]
        OPS[function.__name__] = Op(function.__name__, family, computes, gradient_to)
        return function

    return register


def table() -> str:
    """The README's table of ops, in Markdown."""
    rows = ["| op | what it computes | gradient to |", "| --- | --- | --- |"]
    rows += [f"| `{op.name}` | {op.computes} | {op.gradient_to or 'none'} |" for op in OPS.values()]
    return "\n".join(rows) + "\n"

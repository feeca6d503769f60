"""What ops there are. Each is registered once, where its family defines it; every list of ops follows from here."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Op:
    """A public op.

    Attributes:
        name: of the function in :mod:`wilson.ops`.
        family: its module, and the name of its kernel files.
        computes: what it computes, in a few words.
        differentiable: whether a gradient flows to its first argument.
    """

    name: str
    family: str
    computes: str
    differentiable: bool

    def raw(self) -> dict[str, torch.library.CustomOpDef]:
        """The registered ops behind it by name: itself and, where there is one, its `_backward`."""
        found = vars(sys.modules[f"{__package__}.{self.family}"]).values()
        definitions = {d._name: d for d in found if isinstance(d, torch.library.CustomOpDef)}
        return {name: definitions[name] for name in (self.name, f"{self.name}_backward") if name in definitions}


OPS: dict[str, Op] = {}  # by name, in the order of the documentation


def register(computes: str, *, differentiable: bool) -> Callable[[Function], Function]:
    """Registers a public op under the name of its function, and its family under that of its module."""

    def registered(function: Function) -> Function:
        name, family = function.__name__, function.__module__.rpartition(".")[2]
        OPS[name] = Op(name, family, computes, differentiable)
        return function

    return registered


def families() -> dict[str, list[Op]]:
    """The ops of each family."""
    found: dict[str, list[Op]] = {}
    for op in OPS.values():
        found.setdefault(op.family, []).append(op)
    return found


def table() -> str:
    """The ops and what they compute, as a Markdown table."""
    rows = [f"| `{op.name}` | {op.computes} |" for op in OPS.values()]
    return "\n".join(["| op | what it computes |", "| --- | --- |", *rows]) + "\n"

"""Launches and bytes of global memory of every op, counted, against the least that the op can do with.

The least of a call is its inputs and outputs, once each; for PAMR what every iteration needs, a mask in, a mask out
and the affinities; for the confident labels two passes, peaks and labels; for the upsampled cross-entropy two passes
with one number of each pixel between them. Bytes that one launch reads twice are one distinct byte: an op that needs
one launch for its passes may come out below the least.

`python -m tests.emulator.traffic` prints the table; `table()` is for other programs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.support import cases
from wilson import ops
from wilson.ops._registry import OPS

from . import ops as emulated_ops
from .kernel import Launch, Session

# Small enough to be run here, large enough that the partial sums of a reduction do not count
SHAPE = cases.Shape(2, 21, 32, 32, old=16, scale=4)


@dataclass(frozen=True)
class Call:
    """One call of a raw op: a forward or a backward."""

    op: str
    least: int
    launches: tuple[Launch, ...]

    @property
    def distinct(self) -> int:
        return sum(launch.distinct for launch in self.launches)

    @property
    def requested(self) -> int:
        return sum(launch.requested for launch in self.launches)


def measure(provider: str, case: cases.Case, arch: int = 90) -> list[Call]:
    """The calls of a case: the forward, and the backward if there is one that launches kernels."""
    calls: list[Call] = []

    def observe(session: Session, name: str, launcher: Any, args: tuple[Any, ...]) -> Any:
        first = len(session.launches)
        result = launcher(*args)
        launches = tuple(session.launches[first:])
        calls.append(Call(name, least(name, args, result, len(launches)), launches))
        return result

    with emulated_ops.emulated(provider, OPS[case.op].family, arch, observe=observe):
        case.value_and_grad(getattr(ops, case.op))
    return calls


def least(name: str, args: tuple[Any, ...], result: Any, launches: int) -> int:
    """Bytes that a raw op must load and store in so many launches."""
    once = sum(_bytes(t) for t in _tensors((args, result)))
    if name == "pamr":
        image, mask, _, iterations, dilations = args
        refined = _bytes(result)
        affinities = 8 * len(dilations) * image.shape[0] * image.shape[2] * image.shape[3] * result.element_size()
        if launches <= 2:  # all iterations in one launch
            return _bytes(image) + 2 * affinities + _bytes(mask) + refined
        # written once; then in each iteration read, with the mask before, and the mask after written
        steps = affinities + iterations * (affinities + 2 * refined)
        if mask.shape[2:] == image.shape[2:]:
            return _bytes(image) + steps - refined + _bytes(mask)  # the first mask has its own dtype
        return _bytes(image) + steps + _bytes(mask) + refined  # resized first
    if name == "confident_labels":  # peaks first, then labels
        return once + _bytes(args[0])
    if name == "upsampled_cross_entropy" and args[3]:
        # The softmax of a pixel is needed by all low-resolution pixels around it: one number of each pixel is kept
        # between two passes
        logits, labels, *_ = args
        statistic = labels.numel() * result[0].element_size()
        return once + _bytes(logits) + _bytes(labels) + 2 * statistic
    if name == "localization_prior_loss":  # the new classes are not looked at
        scores, old = args
        return once - _bytes(scores[:, old.shape[1] :])
    if name == "localization_prior_loss_backward":
        _, scores, old = args
        return once - _bytes(scores[:, old.shape[1] :])
    return once


def _bytes(tensor: Tensor) -> int:
    """Distinct bytes of a tensor's elements."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= 1 if stride == 0 and size else size
    return elements * tensor.element_size()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _tensors(v)


def example(op: str, dtype: torch.dtype = torch.float32, shape: cases.Shape = SHAPE) -> cases.Case:
    """A call of an op at a shape, contiguous."""
    return cases.case(op, "traffic", shape, dtype)


def table(provider: str, dtype: torch.dtype = torch.float32, arch: int = 90) -> list[dict[str, Any]]:
    """One row for each forward and backward of each op that the provider serves."""
    rows = []
    for name, op in OPS.items():
        if op.family in emulated_ops.families(provider):
            rows += [
                {
                    "op": call.op,
                    "launches": len(call.launches),
                    "least bytes": call.least,
                    "distinct bytes": call.distinct,
                    "distinct / least": round(call.distinct / call.least, 3),
                    "requested bytes": call.requested,
                    "reuse": round(call.requested / call.distinct, 3),  # how often a byte is asked for
                }
                for call in measure(provider, example(name, dtype), arch)
                if call.launches
            ]
    return rows


def main() -> None:
    for provider in emulated_ops.PROVIDERS:
        for dtype in (torch.float32, torch.bfloat16):
            rows = table(provider, dtype)
            print(f"\n{provider}, {dtype}, maps {SHAPE.batch}x{SHAPE.classes}x{SHAPE.height}x{SHAPE.width}")
            print(" | ".join(f"{name:>16}" for name in rows[0]))
            for row in rows:
                print(" | ".join(f"{value:>16}" for value in row.values()))


if __name__ == "__main__":
    main()

"""Launches, instructions and bytes of global memory of every op, counted; bytes against the least it can do with.

The least of a call is its inputs and outputs, once each; for PAMR what every iteration needs, a mask in, a mask out
and the affinities; for the random walk the weights, written once and read in each launch; for the confident labels two
passes, peaks and labels; for the upsampled cross-entropy two passes with one number of each pixel between them. Bytes
that one launch reads twice are one distinct byte: an op that needs one launch for its passes may come out below the
least.

Instructions are of PTX, for each element of the map that the op goes through: a score, or the score of a class at a
pixel of the image's size. Machine code has others (a division of floats becomes eight, an addition of 64 bits two), so
that they compare kernels rather than predict times.

`python -m tests.emulator.traffic` prints the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.support import cases
from wilson import ops
from wilson.ops import reference
from wilson.ops._registry import OPS

from . import ops as emulated_ops
from .kernel import Launch, Session
from .program import LANES
from .units import Unit

# Small enough to be run here, large enough that the partial sums of a reduction do not count
SHAPE = cases.Shape(2, 21, 32, 32, old=16, scale=4)


@dataclass(frozen=True)
class Call:
    """One call of a raw op: a forward or a backward."""

    op: str
    elements: int
    least: int
    launches: tuple[Launch, ...]

    @property
    def distinct(self) -> int:
        return sum(launch.distinct for launch in self.launches)

    @property
    def requested(self) -> int:
        return sum(launch.requested for launch in self.launches)

    @property
    def wide(self) -> float:
        """The share of the bytes asked for that lanes move 8 or more at a time."""
        return sum(launch.wide for launch in self.launches) / self.requested

    def executed(self, unit: Unit) -> float:
        """Instructions of a unit for each element."""
        return LANES * sum(launch.executed[unit] for launch in self.launches) / self.elements


def measure(provider: str, case: cases.Case, arch: int = 90) -> list[Call]:
    """The calls of a case: the forward, and the backward if there is one that launches kernels."""
    calls: list[Call] = []

    def observe(session: Session, name: str, launcher: Any, args: tuple[Any, ...]) -> Any:
        first = len(session.launches)
        result = launcher(*args)
        launches = tuple(session.launches[first:])
        calls.append(Call(name, elements(args, result), least(name, args, result, len(launches)), launches))
        return result

    with emulated_ops.emulated(provider, OPS[case.op].family, arch, observe=observe):
        case.value_and_grad(getattr(ops, case.op))
    return calls


def least(name: str, args: tuple[Any, ...], result: Any, launches: int) -> int:
    """Bytes that a raw op must load and store in so many launches."""
    once = sum(_bytes(t) for t in _tensors((args, result)))
    if name in cases.REFINING:
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
    if name == "random_walk":
        scores, edge, radius, *_ = args
        weights = (len(reference.disc(radius)) // 2 + 1) * edge.numel() * result.element_size()
        if launches <= 2:  # all steps in one launch
            return once + _bytes(edge) + 2 * weights
        # in each launch read, with the scores before, and the scores after written
        walks = launches - 1
        return once + _bytes(edge) + weights + walks * weights + 2 * (walks - 1) * _bytes(result)
    if name == "confident_labels":  # peaks first, then labels
        return once + _bytes(args[0])
    if name == "upsampled_cross_entropy" and args[4]:
        # The softmax of a pixel is needed by all low-resolution pixels around it: one number of each pixel is kept
        # between two passes
        logits, labels, *_ = args
        statistic = labels.numel() * result[0].element_size()
        return once + _bytes(logits) + _bytes(labels) + 2 * statistic
    if name in ("localization_prior_loss", "localization_prior_loss_backward"):
        scores, old = args[-2:]
        # the new classes are not looked at; channels-last they lie between the old ones and come along
        return once if scores.stride(1) == 1 else once - _bytes(scores[:, old.shape[1] :])
    return once


def elements(args: tuple[Any, ...], result: Any) -> int:
    """Scores that a raw op goes through: of its largest map, at the size of its labels."""
    tensors = list(_tensors((args, result)))
    pixels = max((t.numel() for t in tensors if t.dim() == 3), default=0)
    return max(max(t.numel(), t.shape[1] * pixels) for t in tensors if t.dim() == 4)


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


def example(
    op: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous", shape: cases.Shape = SHAPE
) -> cases.Case:
    """A call of an op at a shape."""
    return cases.case(op, "traffic", shape, dtype, layout=layout)


def calls(provider: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous", arch: int = 90) -> list[Call]:
    """Each forward and backward of each op that the provider serves, of those that launch kernels."""
    served = [name for name, op in OPS.items() if op.family in emulated_ops.families(provider)]
    every = [call for name in served for call in measure(provider, example(name, dtype, layout), arch)]
    return [call for call in every if call.launches]


def table(measured: list[Call]) -> list[dict[str, Any]]:
    """Launches and bytes, one row for each call."""
    return [
        {
            "op": call.op,
            "launches": len(call.launches),
            "least bytes": call.least,
            "distinct bytes": call.distinct,
            "distinct / least": round(call.distinct / call.least, 3),
            "requested bytes": call.requested,
            "reuse": round(call.requested / call.distinct, 3),  # how often a byte is asked for
            "wide": round(call.wide, 2),
        }
        for call in measured
    ]


def instructions(measured: list[Call]) -> list[dict[str, Any]]:
    """Instructions for each element, by unit, one row for each call."""
    units = [unit for unit in Unit if unit != Unit.NONE]
    return [
        {"op": call.op}
        | {unit.name.lower(): round(call.executed(unit), 1) for unit in units}
        | {"all": round(sum(call.executed(unit) for unit in units), 1)}
        for call in measured
    ]


FORMATS = ((torch.float32, "contiguous"), (torch.bfloat16, "contiguous"), (torch.bfloat16, "channels_last"))


def main() -> None:
    for provider in emulated_ops.PROVIDERS:
        for dtype, layout in FORMATS:
            measured = calls(provider, dtype, layout)
            for rows in (table(measured), instructions(measured)):
                print(
                    f"\n{provider}, {dtype}, {layout}, maps {SHAPE.batch}x{SHAPE.classes}x{SHAPE.height}x{SHAPE.width}"
                )
                print(" | ".join(f"{name:>16}" for name in rows[0]))
                for row in rows:
                    print(" | ".join(f"{value:>16}" for value in row.values()))


if __name__ == "__main__":
    main()

"""What the tests ask of the emulated ops: the reference's values and gradients, and the same bits in any order."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from tests.support import cases, infinities
from tests.support.agreement import Expected, flat
from wilson import ops
from wilson.ops._registry import OPS

from . import build, traffic
from . import ops as emulated_ops

FAMILY = {name: op.family for name, op in OPS.items()}


@functools.cache
def missing(provider: str) -> str:
    """Why kernels of a provider cannot run here, or nothing."""
    try:
        build.compiler()
        if provider == "cuda":
            from . import cuda_ops

            cuda_ops.nvcc()
    except build.BuildError as error:
        return str(error)
    if provider == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if importlib.util.find_spec("wilson.kernels") is None:
            return "wilson.kernels is not installed: run pip install -e ."
    return ""


def need(provider: str, op: str) -> str:
    """The family of an op, whose kernels the provider has; else the test is skipped, and says why."""
    why = missing(provider)
    if not why and FAMILY[op] not in emulated_ops.families(provider):
        why = f"{provider} has no kernel of {op} yet"
    if why:
        pytest.skip(why)
    return FAMILY[op]


def agrees(provider: str, case: cases.Case, arch: int = 90, seed: int = 0) -> None:
    """Values and gradients of a case against the reference in float64."""
    expected = Expected(case)
    with emulated_ops.emulated(provider, need(provider, case.op), arch, seed) as session:
        expected.assert_met_by(getattr(ops, case.op))
    assert session.launches or not case.args[0].numel(), "no kernel ran"
    unordered = {launch.name for launch in session.launches if launch.unordered}
    assert not unordered, f"atomic sums, whose order is another in every run: {unordered}"


def as_the_reference(provider: str, odd: Iterable[cases.Case]) -> None:
    """Cases with infinite and undefined numbers."""
    for case in odd:
        with emulated_ops.emulated(provider, need(provider, case.op)):
            infinities.assert_as_the_reference(case, getattr(ops, case.op))


def same_bits_in_any_order(provider: str, case: cases.Case, seeds: tuple[int, ...] = (1, 2)) -> None:
    """Blocks and warps in other orders: what depends on the order differs, or is a fault."""
    family = need(provider, case.op)
    results = []
    for seed in (0, *seeds):
        with emulated_ops.emulated(provider, family, seed=seed):
            results.append(flat(case.value_and_grad(getattr(ops, case.op))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


AXES = ("images", "classes", "rows", "columns")
AXES_OF = {1: AXES[:1], 2: AXES[:2], 3: ("images", "rows", "columns"), 4: AXES}  # of tensors with so many dimensions
FAR = 2**30  # elements; two of these are beyond 31 bits


MIXED = infinities.MIXED  # take a prior, which the following put into their cases if asked to


def _case(op: str, name: str, shape: cases.Shape, layout: str, prior: bool) -> cases.Case:
    return (cases.mixed if prior else cases.case)(op, name, shape, torch.bfloat16, layout=layout)


def far_apart(
    provider: str, op: str, axis: str, layout: str = "contiguous", width: int = 5, *, prior: bool = False
) -> None:
    """Tensors that are far apart along an axis: each stride has 31 bits, the offset of the last index needs more."""
    shape = cases.Shape(3, 5, 4, width, old=3, scale=2) if prior else cases.Shape(3, 4, 4, width, old=3, scale=2)
    agrees(provider, _case(op, "far", shape, layout, prior).changed(lambda near: _spread(near, axis)))


def _spread(near: torch.Tensor, axis: str) -> torch.Tensor:
    """The same values in memory of which few pages are ever touched; numbers of 8 bytes would span too much of it."""
    if near.dtype == torch.int64 and near.dim() == 3:
        near = near.to(torch.uint8)
    axes = AXES_OF.get(near.dim(), ())
    if axis not in axes or near.element_size() == 8:
        return near
    strides = list((near if axis == "images" else near.contiguous()).stride())
    strides[axes.index(axis)] = FAR
    storage = torch.empty(near.shape[axes.index(axis)] * FAR, dtype=near.dtype)
    return storage.as_strided(near.shape, strides).copy_(near)


def shifted(provider: str, op: str, numbers: int, *, prior: bool = False) -> None:
    """Channels-last maps whose pixels are whole pieces of 32 bytes, so many numbers behind a multiple of them."""
    case = cases.case(op, "shifted", cases.Shape(2, 32, 5, 7, old=16, scale=1), torch.bfloat16, layout="channels_last")
    agrees(provider, case.changed(lambda a: _shift(a, numbers) if a.dim() == 4 else a))
    case = _case(op, "shifted", cases.Shape(2, 32, 5, 7, old=16, scale=1), "channels_last", prior)
    agrees(provider, case.changed(lambda a: _shift(a, numbers) if a.dim() == 4 else a))


def _shift(x: torch.Tensor, numbers: int) -> torch.Tensor:
    storage = torch.empty(x.numel() + numbers, dtype=x.dtype)
    return storage.as_strided(x.shape, x.stride(), numbers).copy_(x)


def labelled_bits(provider: str, op: str) -> None:
    """PAMR with image-level labels takes other launches, and gives the bits of all classes where there is a label."""
    family, refine = need(provider, op), getattr(ops, op)
    draw = cases.Draw("labelled", cases.Shape(2, 6, 5, 7), torch.float32)
    labels = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]])
    shown = torch.nn.functional.pad(labels, (1, 0), value=1)[:, :, None, None]
    args = draw.image(), draw.probabilities()
    options: dict[str, Any] = {"iterations": 2, "dilations": [1, 3]}
    with emulated_ops.emulated(provider, family):
        every = refine(*args, **options)
        gated = refine(*args, image_labels=labels * 0.25, **options)
    assert torch.equal(gated, every * shown)


# The ops of one incremental step, which may take 15 launches of our own, and one for each of PAMR's iterations where
# those are launches
STEP = (
    "ngwp_focal_pool", "localization_prior_loss", "pseudo_label_loss", "pamr", "confident_labels",
    "balanced_cross_entropy",
)  # fmt: skip
MOST_LAUNCHES = 15
# Distinct bytes of an op, and for the ops that stream through memory also the bytes asked for, against the least
MOST_BYTES = 1.1
# Of channels-last maps tiles are small, and partial sums many
MOST_CHANNELS_LAST_BYTES = 1.15
STREAMING = (
    "ngwp_focal_pool", "localization_prior_loss", "soft_margin_loss", "one_versus_rest", "merge_pseudo_labels",
    "pseudo_label_loss",
)  # fmt: skip
# Of which lanes move so many bytes 8 or more at a time: all but partial sums
LEAST_WIDE = 0.75
# Of which a byte is asked for no more than 1.1 times, whether or not classes lie side by side
CHANNELS_LAST = (*STREAMING, "balanced_cross_entropy")


def few_launches(provider: str) -> None:
    count = 0
    for op in STEP:
        need(provider, op)
        case = traffic.example(op)
        launches = sum(len(call.launches) for call in traffic.measure(provider, case))
        count += launches - 10 if op == "pamr" and launches > 10 else launches
    assert count <= MOST_LAUNCHES, f"{count} launches"


def few_bytes(provider: str, case: cases.Case) -> None:
    need(provider, case.op)
    for call in traffic.measure(provider, case):
        if not call.launches:
            continue
        assert call.distinct <= MOST_BYTES * call.least, f"{call.op}: {call.distinct} distinct bytes of {call.least}"
        if case.op in STREAMING:
            asked = f"{call.op}: {call.requested} bytes asked for of {call.least}"
            assert call.requested <= MOST_BYTES * call.least, asked


def few_channels_last_bytes(provider: str, op: str) -> None:
    need(provider, op)
    for call in traffic.measure(provider, traffic.example(op, torch.bfloat16, "channels_last")):
        if not call.launches:
            continue
        found = f"{call.op}: {call.requested} bytes asked for, {call.distinct} distinct, of {call.least}"
        assert call.distinct <= MOST_CHANNELS_LAST_BYTES * call.least, found
        assert call.requested <= MOST_BYTES * call.distinct, found
        assert call.wide >= LEAST_WIDE, f"{call.op}: {call.wide:.0%} of the bytes by 8 or more at a time"

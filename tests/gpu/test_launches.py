"""Every launch of the CUDA kernels is one that a GPU takes: the launchers run, the kernels do not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import torch

from tests.emulator import check, kernel
from tests.emulator.limits import EVERYWHERE_SHARED_BYTES
from tests.support import raw_calls
from wilson.ops._registry import OPS

MOST_CLASSES = 1024
# The ways to move maps: 16 bytes at a time for each dtype, where pixels or classes lie side by side, and number by
# number in float and in double
WAYS = [
    pytest.param(torch.float32, "contiguous", 90, id="float32"),
    pytest.param(torch.bfloat16, "contiguous", 90, id="bfloat16"),
    pytest.param(torch.float32, "channels_last", 90, id="float32-channels_last"),
    pytest.param(torch.bfloat16, "channels_last", 90, id="bfloat16-channels_last"),
    pytest.param(torch.float32, "transposed", 90, id="strided"),
    pytest.param(torch.float64, "contiguous", 90, id="float64"),
    pytest.param(torch.float16, "contiguous", 90, id="float16", marks=pytest.mark.slow),
    pytest.param(torch.float32, "contiguous", 80, id="float32-sm_80", marks=pytest.mark.slow),
    pytest.param(torch.float16, "channels_last", 80, id="float16-channels_last-sm_80", marks=pytest.mark.slow),
]


def launch(family: str, arch: int, blanks: Iterable[raw_calls.Blank]) -> set[str]:
    """Call the raw ops; returns those called."""
    called = set()
    served = cuda_launchers(family, arch)
    with kernel.launches_only() as session:
        for blank in blanks:
            for op, args in raw_calls.FAMILIES[family](blank):
                called.add(op)
                before = len(session.launches)
                served[op](*args)
                assert len(session.launches) > before
    too_large = {launch for launch in session.launches if launch.shared > EVERYWHERE_SHARED_BYTES}
    assert not too_large, "some GPU since sm_80 has less shared memory"
    assert not {launch.name for launch in session.launches if launch.unordered}, "the bits must not depend on order"
    return called


def cuda_launchers(family: str, arch: int):
    from tests.emulator import ops as emulated_ops

    check.need("cuda", next(op.name for op in OPS.values() if op.family == family))
    return emulated_ops.launchers("cuda", family, arch)


@pytest.mark.parametrize("family", raw_calls.FAMILIES)
@pytest.mark.parametrize(("dtype", "layout", "arch"), WAYS)
def test_any_number_of_classes(family, dtype, layout, arch):
    blanks = (
        raw_calls.Blank(classes, dtype, (2, 4), layout, batch=1, device="cpu") for classes in range(1, MOST_CLASSES + 1)
    )
    called = launch(family, arch, blanks)
    assert called == {raw for op in OPS.values() if op.family == family for raw in op.raw}


SIDES = [(1, 1), (1, 70_000), (300, 1), (17, 31), (513, 7)]


@pytest.mark.parametrize("family", raw_calls.FAMILIES)
def test_any_sides(family):
    squares = [(side, side) for side in range(2, 130, 3 if family == "pamr" else 32)]  # PAMR keeps planes if it can
    blanks = (
        raw_calls.Blank(classes, dtype, size, batch=1, device="cpu")
        for size, classes, dtype in itertools.product((*SIDES, *squares), (1, 6), (torch.float32, torch.float64))
    )
    launch(family, 90, blanks)


@pytest.mark.parametrize(
    ("size", "steps", "most"),
    [((94, 125), 256, 1), ((12672, 1), 256, 1), ((188, 250), 256, 32), ((188, 250), 257, 33), ((188, 250), 0, 1)],
)
def test_random_walk(size, steps, most):
    """All steps in one launch where a map has room in shared memory, else an eighth as many; one more for weights."""
    blank = raw_calls.Blank(2, torch.float32, size, device="cpu")
    with kernel.launches_only() as session:
        cuda_launchers("walk", 90)["random_walk"](blank.map(), blank.map(1), 5, 10.0, steps)
    assert len(session.launches) == 1 + most


@pytest.mark.parametrize("family", raw_calls.FAMILIES)
def test_more_images_than_a_second_side_of_a_grid_takes(family):
    launch(family, 90, [raw_calls.Blank(6, torch.float32, (2, 4), batch=70_000, device="cpu")])

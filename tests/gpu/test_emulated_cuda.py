"""The CUDA kernels, launchers included, executed on the CPU: values, gradients, order, launches and bytes."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.emulator import check, traffic
from tests.support import cases, infinities

PROVIDER = "cuda"
# All of float32 that is quick; of bfloat16, whose loads and stores differ, the layouts that choose other kernels
SLOW = set(itertools.product(cases.REFINING, ("long", "many_classes")))
QUICK_BFLOAT16 = {
    "odd", "channels_last", "two_classes", "wide", "many_classes", "prior_aligned", "prior_channels_last",
}  # fmt: skip


def every(*dtypes: torch.dtype) -> list[cases.Case]:
    return [case for dtype in dtypes for case in cases.every(dtype)]


def name(case: cases.Case) -> str:
    return f"{case}-{str(case.args[0].dtype).removeprefix('torch.')}"


def quick(case: cases.Case) -> bool:
    dtype = case.args[0].dtype
    # in float64, sums of a block and of a kernel share their memory
    chosen = case.name == "odd" or dtype == torch.float32 or (dtype == torch.bfloat16 and case.name in QUICK_BFLOAT16)
    return chosen and (case.op, case.name) not in SLOW


BOTH = every(torch.float32, torch.bfloat16)


@pytest.mark.parametrize("case", [c for c in (*BOTH, *every(torch.float64)) if quick(c)], ids=name)
def test_agrees_with_the_reference(case):
    check.agrees(PROVIDER, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in BOTH if not quick(c)], ids=name)
def test_agrees_on_all_cases(case):
    check.agrees(PROVIDER, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", every(torch.float16, torch.float64), ids=name)
def test_agrees_in_other_dtypes(case):
    check.agrees(PROVIDER, case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [c for c in every(torch.float32, torch.float16) if c.name in QUICK_BFLOAT16 and quick(c)], ids=name
)
def test_agrees_on_sm_80(case):
    check.agrees(PROVIDER, case, arch=80)


@pytest.mark.parametrize("op", cases.REFINING)
def test_refining_labelled_classes_gives_the_bits_of_all(op):
    check.labelled_bits(PROVIDER, op)


@pytest.mark.parametrize("iterations", [1, 2])  # which end in either of two buffers
def test_pamr_of_maps_that_have_no_room_in_shared_memory(iterations):
    draw = cases.Draw("large", cases.Shape(1, 2, 113, 113), torch.float32)
    options = {"iterations": iterations, "dilations": [5], "image_labels": torch.zeros(1, 1)}
    check.agrees(PROVIDER, cases.Case("pamr", "large", (draw.image(), draw.probabilities()), options))


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"steps": 0}),
        (torch.float32, {"steps": 9}),  # in two launches
        (torch.float32, {"steps": 17}),  # in three, through either of two buffers
        (torch.float32, {"steps": 9, "radius": 8}),
        (torch.float64, {"steps": 9}),
    ],
    ids=str,
)
def test_random_walk_of_maps_that_have_no_room_in_shared_memory(dtype, options):
    draw = cases.Draw("large", cases.Shape(1, 2, 113, 119), dtype)
    smooth = (draw.edge() * 0.05).to(dtype)  # so that a step too few at the side of a tile is seen
    check.agrees(PROVIDER, cases.Case("random_walk", "large", (draw.scores(), smooth), options))


def test_one_versus_rest_of_classes_that_leave_room_for_one_of_two_maps():
    check.agrees(PROVIDER, cases.case("one_versus_rest", "one_map", cases.Shape(1, 110, 3, 4), torch.float32))


@pytest.mark.parametrize("op", infinities.OPS)
def test_infinite_and_undefined_numbers(op):
    check.as_the_reference(PROVIDER, [infinities.telling(op)])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [infinities.SHAPE, infinities.MANY], ids=["few", "many"])
@pytest.mark.parametrize("op", infinities.OPS)
def test_all_infinite_and_undefined_numbers(op, shape):
    check.as_the_reference(PROVIDER, infinities.of(op, shape))


@pytest.mark.parametrize("axis", check.AXES)
@pytest.mark.parametrize("op", check.FAMILY)
def test_offsets_beyond_31_bits(op, axis):
    check.far_apart(PROVIDER, op, axis)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("op", check.CHANNELS_LAST)
def test_images_apart_that_are_moved_16_bytes_at_a_time(op, layout):
    check.far_apart(PROVIDER, op, "images", layout, width=8)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("axis", "width"), [*((axis, 5) for axis in check.AXES), ("images", 8)])
@pytest.mark.parametrize("op", check.MIXED)
def test_priors_beyond_31_bits(op, axis, width, layout):
    check.far_apart(PROVIDER, op, axis, layout, width, prior=True)


@pytest.mark.parametrize("numbers", [0, 3])
@pytest.mark.parametrize("op", check.CHANNELS_LAST)
def test_channels_last_maps_that_begin_anywhere(op, numbers):
    check.shifted(PROVIDER, op, numbers)


@pytest.mark.parametrize("numbers", [0, 3])
@pytest.mark.parametrize("op", check.MIXED)
def test_channels_last_priors_that_begin_anywhere(op, numbers):
    check.shifted(PROVIDER, op, numbers, prior=True)


@pytest.mark.parametrize("op", check.MIXED)
def test_same_bits_in_any_order_with_a_prior(op):
    check.same_bits_in_any_order(PROVIDER, next(c for c in BOTH if c.op == op and c.name == "prior_long"))


@pytest.mark.parametrize("op", check.FAMILY)
def test_same_bits_in_any_order(op):
    check.same_bits_in_any_order(PROVIDER, next(c for c in BOTH if c.op == op and c.name == "odd"))


@pytest.mark.slow
@pytest.mark.parametrize("op", check.FAMILY)
@pytest.mark.parametrize("case_name", ["channels_last", "long", "many_classes"])
def test_same_bits_in_any_order_of_other_inputs(op, case_name):
    check.same_bits_in_any_order(PROVIDER, next(c for c in BOTH if c.op == op and c.name == case_name))


def test_launches():
    check.few_launches(PROVIDER)


@pytest.mark.parametrize("op", check.FAMILY)
def test_bytes(op):
    check.few_bytes(PROVIDER, traffic.example(op))


@pytest.mark.parametrize("op", check.MIXED)
def test_bytes_with_a_prior(op):
    check.few_bytes(PROVIDER, cases.mixed(op, "traffic", traffic.SHAPE, torch.float32))


@pytest.mark.parametrize("op", check.CHANNELS_LAST)
def test_bytes_of_channels_last_maps(op):
    check.few_channels_last_bytes(PROVIDER, op)


@pytest.mark.slow
@pytest.mark.parametrize("op", check.FAMILY)
def test_bytes_of_bfloat16(op):
    check.few_bytes(PROVIDER, traffic.example(op, torch.bfloat16))

"""The compiled Triton kernels executed on the CPU: values, gradients, order, launches and bytes."""

from __future__ import annotations

import pytest
import torch

from tests.emulator import check, traffic
from tests.support import cases, infinities

PROVIDER = "triton"
# Each of these compiles kernels of its own, which is what takes the time: the rest is among the slow tests
QUICK = {
    torch.float32: {
        "odd", "channels_last", "empty_batch", "extreme", "flat", "image_weight", "resized", "smaller", "old_yields",
        "prior", "prior_yields", "many_images", "never_wins", "wins_late", "peaks_apart", "never_found", "many_pixels",
    },
    torch.bfloat16: {"odd"},
    torch.float64: {"tiles"},
}  # fmt: skip
# One op of each way to find an offset in an image
FAR = ("merge_pseudo_labels", "pamr", "upsampled_soft_margin_loss", "upsampled_argmax")
COLUMN = ("soft_margin_loss", "balanced_cross_entropy")  # whose strides are those of _launch.py, whatever the op
MANY_CLASSES = ("ngwp_focal_pool", "one_versus_rest", "upsampled_argmax")  # have kernels of their own for them
# Values of options and labels, and sizes, that take branches of their own
BRANCHES = {
    ("ngwp_focal_pool", "no_focal"), ("ngwp_focal_pool", "options"), ("ngwp_focal_pool", "gamma_one"),
    ("merge_pseudo_labels", "weighted_background"), ("merge_pseudo_labels", "many_yield"),
    ("merge_pseudo_labels", "shares"), ("merge_pseudo_labels", "prior_many_classes"), ("confident_labels", "shares"),
    ("balanced_cross_entropy", "many_classes"), ("random_walk", "long"),
}  # fmt: skip


def every(*dtypes: torch.dtype) -> list[cases.Case]:
    return [case for dtype in dtypes for case in cases.every(dtype)]


def name(case: cases.Case) -> str:
    return f"{case}-{str(case.args[0].dtype).removeprefix('torch.')}"


def quick(case: cases.Case) -> bool:
    dtype = case.args[0].dtype
    many = case.op in MANY_CLASSES and case.name == "many_classes" and dtype == torch.float32
    column = case.op in COLUMN and case.name == "column" and dtype == torch.float32
    again = case.op == "merge_pseudo_labels" and case.name in ("never_wins", "wins_late")  # as in the loss
    branch = (case.op, case.name) in BRANCHES and dtype == torch.float32
    return many or column or branch or (case.name in QUICK[dtype] and not again)


@pytest.mark.parametrize("case", [c for c in every(*QUICK) if quick(c)], ids=name)
def test_agrees_with_the_reference(case):
    check.agrees(PROVIDER, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in every(torch.float32) if not quick(c)], ids=name)
def test_agrees_on_all_cases(case):
    check.agrees(PROVIDER, case)


# Layouts are the business of the launchers, which float32 has been through: here the arithmetic of the other targets
@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in every(torch.float16, torch.float64) if c.name == "odd"], ids=name)
def test_agrees_in_other_dtypes(case):
    check.agrees(PROVIDER, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in every(torch.float32, torch.float16) if c.name == "odd"], ids=name)
def test_agrees_on_sm_80(case):
    check.agrees(PROVIDER, case, arch=80)


@pytest.mark.parametrize("op", cases.REFINING)
def test_refining_labelled_classes_gives_the_bits_of_all(op):
    check.labelled_bits(PROVIDER, op)


@pytest.mark.parametrize("op", infinities.OPS)
def test_infinite_and_undefined_numbers(op):
    check.as_the_reference(PROVIDER, [infinities.telling(op)])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [infinities.SHAPE, infinities.MANY], ids=["few", "many"])
@pytest.mark.parametrize("op", infinities.OPS)
def test_all_infinite_and_undefined_numbers(op, shape):
    check.as_the_reference(PROVIDER, infinities.of(op, shape))


QUICK_FAR = [(op, axis) for op in check.FAMILY for axis in check.AXES if axis == "images" or op in FAR]


@pytest.mark.parametrize(("op", "axis"), QUICK_FAR)
def test_offsets_beyond_31_bits(op, axis):
    check.far_apart(PROVIDER, op, axis)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "axis"), [(op, axis) for op in check.FAMILY for axis in check.AXES if (op, axis) not in QUICK_FAR]
)
def test_all_offsets_beyond_31_bits(op, axis):
    check.far_apart(PROVIDER, op, axis)


@pytest.mark.parametrize("op", check.FAMILY)
def test_same_bits_in_any_order(op):
    check.same_bits_in_any_order(PROVIDER, next(c for c in every(torch.float32) if c.op == op and c.name == "odd"))


@pytest.mark.slow
@pytest.mark.parametrize("op", check.FAMILY)
@pytest.mark.parametrize("case_name", ["channels_last", "long", "many_classes"])
def test_same_bits_in_any_order_of_other_inputs(op, case_name):
    check.same_bits_in_any_order(PROVIDER, next(c for c in every(torch.float32) if c.op == op and c.name == case_name))


def test_launches():
    check.few_launches(PROVIDER)


# Known to be above the least, and why
MORE_BYTES = {
    "upsampled_cross_entropy": "keeps two numbers of each pixel between its passes where one would do: 1.15 times",
    "pamr": "has no shared memory to address: the masks between iterations lie in global memory, 1.8 times the least",
    "par": "as pamr",
    "random_walk": "has none, either: the scores between steps lie in global memory, 1.84 times the least",
}


def _bytes_of(op: str):
    marks = [pytest.mark.xfail(strict=True, reason=MORE_BYTES[op])] if op in MORE_BYTES else []
    return pytest.param(op, marks=marks)


@pytest.mark.parametrize("op", [_bytes_of(op) for op in check.FAMILY])
def test_bytes(op):
    check.few_bytes(PROVIDER, traffic.example(op))


UPSAMPLED = [op for op, family in check.FAMILY.items() if family == "upsampled"]
MOST_REQUESTED = 3  # bytes asked for, against distinct ones


@pytest.mark.parametrize("op", UPSAMPLED)
def test_neighbouring_pixels_share_what_is_loaded(op):
    check.need(PROVIDER, op)
    for call in traffic.measure(PROVIDER, traffic.example(op)):
        assert call.requested <= MOST_REQUESTED * call.distinct, f"{call.op}: {call.requested} of {call.distinct}"

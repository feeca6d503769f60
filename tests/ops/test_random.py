"""Every op on shapes, strides, dtypes and values that nobody thought of."""

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.support import cases
from tests.support.agreement import assert_agrees
from wilson import ops


def maps(case):
    """The places of the floating maps among the arguments."""
    return [
        i for i, a in enumerate(case.args) if isinstance(a, torch.Tensor) and a.is_floating_point() and a.dim() == 4
    ]


@st.composite
def shapes(draw):
    classes = draw(st.integers(1, 12) | st.sampled_from([63, 64, 65, 129]))
    side = st.integers(1, 20) | st.sampled_from([127, 129])
    height, width = draw(side), draw(st.integers(1, 20))
    scale = draw(st.sampled_from([0.3, 0.5, 1, 1.7, 2, 3.3]))
    return cases.Shape(draw(st.integers(0, 3)), classes, height, width, old=draw(st.integers(1, classes)), scale=scale)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    op=st.sampled_from(sorted(cases.INPUTS)),
    shape=shapes(),
    dtype=st.sampled_from(cases.DTYPES),
    layout=st.sampled_from(["contiguous", *cases.LAYOUTS]),
    spread=st.sampled_from([0.0, 0.1, 3.0, 50.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(op, shape, dtype, layout, spread, seed):
    assume(shape.classes >= cases.LEAST_CLASSES.get(op, 1))
    assert_agrees(cases.case(op, f"random{seed}", shape, dtype, layout=layout, spread=spread), getattr(ops, op))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    op=st.sampled_from([op for op in cases.INPUTS if len(maps(cases.case(op, "", cases.SMALL, torch.float32))) > 1]),
    shape=shapes(),
    dtypes=st.lists(st.sampled_from(cases.DTYPES), min_size=3, max_size=3),
    layouts=st.lists(st.sampled_from(["contiguous", *cases.LAYOUTS]), min_size=3, max_size=3),
)
def test_arguments_of_one_call_may_differ_in_dtype_and_strides(op, shape, dtypes, layouts):
    case = cases.case(op, "mixed", shape, torch.float64)
    args = list(case.args)
    for i, dtype, layout in zip(maps(case), dtypes, layouts, strict=False):
        args[i] = cases.lay_out(args[i].to(dtype), layout)
    assert_agrees(cases.replace(case, args=tuple(args)), getattr(ops, op))

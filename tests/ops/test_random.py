"""Every op on shapes, strides, dtypes and values that nobody thought of."""

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.support import cases
from tests.support.agreement import assert_agrees
from wilson import ops


def is_map(a):
    return a.is_floating_point() and a.dim() == 4


def maps(case):
    """The floating maps among the arguments."""
    return [a for a in (*case.args, *case.kwargs.values()) if isinstance(a, torch.Tensor) and is_map(a)]


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
    assume(cases.takes(op, shape))
    assert_agrees(cases.case(op, f"random{seed}", shape, dtype, layout=layout, spread=spread), getattr(ops, op))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    op=st.sampled_from([op for op in cases.INPUTS if len(maps(cases.case(op, "", cases.SMALL, torch.float32))) > 1]),
    shape=shapes(),
    dtypes=st.lists(st.sampled_from(cases.DTYPES), min_size=3, max_size=3),
    layouts=st.lists(st.sampled_from(["contiguous", *cases.LAYOUTS]), min_size=3, max_size=3),
)
def test_arguments_of_one_call_may_differ_in_dtype_and_strides(op, shape, dtypes, layouts):
    assume(cases.takes(op, shape))
    forms = iter(zip(dtypes, layouts, strict=True))

    def formed(a):
        if not is_map(a):
            return a
        dtype, layout = next(forms)
        return cases.lay_out(a.to(dtype), layout)

    assert_agrees(cases.case(op, "mixed", shape, torch.float64).changed(formed), getattr(ops, op))

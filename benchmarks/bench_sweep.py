"""How the cost of each op grows with pixels, classes and images: time = a + b * elements.

Claims that hold on any machine are asserted: little overhead, no size at which the time per element jumps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from benchmarks import measure
from tests.support import cases
from wilson import ops
from wilson.ops import _library
from wilson.ops._registry import OPS

SIDES = (16, 32, 64, 128, 256)
CLASSES = (2, 3, 5, 9, 17, 21, 33, 61, 64, 65, 81, 128, 129, 257, 513, 1001)
BATCHES = (1, 2, 4, 8, 16, 32)
MAX_OVERHEAD = 150e-6  # seconds
MAX_GROWTH = 1.5  # time per element at the largest size, of the best in the sweep
MAX_JUMP = 2.0  # time per element from one number of classes to the next


def shapes(axis: str) -> list[cases.Shape]:
    if axis == "pixels":
        return [cases.Shape(4, 21, side, side, old=16, scale=2) for side in SIDES]
    if axis == "classes":
        return [cases.Shape(2, count, 32, 32, old=(count + 1) // 2, scale=2) for count in CLASSES]
    return [cases.Shape(batch, 21, 32, 32, old=16, scale=2) for batch in BATCHES]


@dataclass
class Sweep:
    elements: np.ndarray
    seconds: np.ndarray

    def fit(self) -> tuple[float, float]:
        """a, b of time = a + b * elements, by least squares of the relative error."""
        design = np.stack([1 / self.seconds, self.elements / self.seconds], 1)
        (a, b), *_ = np.linalg.lstsq(design, np.ones(len(self.seconds)), rcond=None)
        return float(a), float(b)

    @property
    def per_element(self) -> np.ndarray:
        return self.seconds / self.elements


def call_of(op: str, shape: cases.Shape):
    case = cases.case(op, "sweep", shape, torch.float32).on(measure.DEVICE)
    return measure.finished(measure.forward_and_backward(getattr(ops, op), case.args, case.kwargs, case.differentiable))


@pytest.mark.parametrize("axis", ["pixels", "classes", "images"])
@pytest.mark.parametrize("op", OPS)
def test_growth(benchmark, op, axis):
    if not _library.has_kernel(op, measure.DEVICE.type.upper()):
        pytest.skip("served by the reference")
    made = shapes(axis)
    seconds = [measure.fastest(call_of(op, shape)) for shape in made]
    sweep = Sweep(np.array([s.batch * s.classes * s.height * s.width for s in made], float), np.array(seconds))
    a, b = sweep.fit()
    benchmark.group = f"growth with {axis}"
    benchmark.extra_info |= {
        "a, us": round(a * 1e6, 1),
        "b, ns per element": round(b * 1e9, 3),
        "largest over best": round(float(sweep.per_element[-1] / sweep.per_element.min()), 2),
        "ns per element": [round(t * 1e9, 3) for t in sweep.per_element],
    }
    call = call_of(op, made[-1])
    benchmark.pedantic(call, rounds=3)
    assert a <= MAX_OVERHEAD, f"{a * 1e6:.0f} us of overhead"
    assert sweep.per_element[-1] <= MAX_GROWTH * sweep.per_element.min(), sweep.per_element
    if axis == "classes":
        beyond = sweep.seconds - max(a, 0)
        jumps = (beyond / sweep.elements)[1:] / (beyond / sweep.elements)[:-1]
        assert jumps[4:].max() <= MAX_JUMP, dict(zip(CLASSES[1:], jumps.round(2), strict=True))  # from 21 classes on

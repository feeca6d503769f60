"""The random walk as published: 256 steps over maps at stride 4, against eager PyTorch and against the dense matrix.

The published code makes the matrix of all pairs of pixels and squares it 8 times. That is measured on the smaller map
alone: on the larger one the matrix has half a gigabyte, and the squares take 26 TFLOP.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from benchmarks import measure
from tests.support import cases
from tests.support.agreement import Expected
from wilson import ops
from wilson.ops import reference

SIZES = {"small": (47, 62), "voc": (94, 125), "coco": (94, 125)}
SQUARES = 8
DENSE_SIZE = (47, 62)


def walk_of(size: tuple[int, int]) -> cases.Case:
    """Of two classes, background and one, with edges that let most of it pass."""
    draw = cases.Draw("walk", cases.Shape(1, 2, *size), torch.float32)
    return cases.Case("random_walk", "published", (draw.scores(), draw.edge() / 2), {"steps": 2**SQUARES})


def dense(scores: Tensor, edge: Tensor, *, radius: int = 5, beta: float = 10.0, steps: int = 2**SQUARES) -> Tensor:
    """The walk by the matrix of transitions, squared until it is that of all steps."""
    height, width = edge.shape[1:]
    size, pixel = edge.shape[1:], torch.arange(height * width).view(1, 1, height, width)
    barred, padded = reference.pad(edge[:, None], radius, 1), reference.pad(pixel, radius, -1)
    matrix = torch.eye(height * width)
    for step in reference.disc(radius):
        neighbour = reference.window(padded, radius, *step, size)
        inside = neighbour >= 0
        matrix[pixel[inside], neighbour[inside]] = reference.link_weight(barred, radius, beta, *step, size)[inside]
    matrix = matrix / matrix.sum(0)
    while steps > 1:
        matrix, steps = matrix @ matrix, steps // 2
    return ((scores * (1 - edge)[:, None]).flatten(2) @ matrix).view(scores.shape)


@pytest.mark.parametrize("implementation", ["wilson", "eager"])
def test_published_walk(benchmark, grid, implementation):
    case = walk_of(SIZES[grid])
    function = ops.random_walk if implementation == "wilson" else reference.random_walk
    _measure(benchmark, case, function)


@pytest.mark.parametrize("implementation", ["wilson", "eager", "dense"])
def test_dense_matrix(benchmark, grid, implementation):
    if grid != "voc":
        pytest.skip("with --shapes voc: the dense matrix takes a minute and does not change with the grid")
    functions = {"wilson": ops.random_walk, "eager": reference.random_walk, "dense": dense}
    _measure(benchmark, walk_of(DENSE_SIZE), functions[implementation])


def _measure(benchmark, case: cases.Case, function) -> None:
    Expected(case).assert_met_by(function)
    case = case.on(measure.DEVICE)
    call = measure.finished(functools.partial(case.run, function))
    benchmark.group = f"random_walk {tuple(case.args[0].shape)}"
    benchmark.extra_info["peak extra MB"] = round(measure.peak_extra_bytes(call) / 1e6, 2)
    benchmark.pedantic(call, rounds=1 if function is dense else measure.rounds_for(call))

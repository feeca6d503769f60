"""The random walk: the published figures, the matrix that it never makes, and what its arguments mean."""

from pathlib import Path

import numpy as np
import pytest
import torch

from wilson import ops
from wilson.ops import reference

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=[reference, ops], ids=["reference", "ops"])
def module(request):
    return request.param


def maps(*shape, dtype=torch.float64):
    """Scores and edges, of which some are 0 and some 1."""
    generator = torch.Generator().manual_seed(0)
    batch, _, height, width = shape
    edge = torch.rand(batch, height, width, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype), edge.clamp(0, 1).to(dtype)


def transitions(edge, radius, beta):
    """T (P, P) as the paper has it: of every pair of pixels by itself. The walk is x T."""
    height, width = edge.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]
    affinity = torch.eye(len(pixels), dtype=edge.dtype)
    for i, (y, x) in enumerate(pixels):
        for j, (v, u) in enumerate(pixels):
            down, right = v - y, u - x
            if not 0 < down * down + right * right < radius * radius:
                continue
            box = [(r, c) for r in range(min(y, v), max(y, v) + 1) for c in range(min(x, u), max(x, u) + 1)]
            near = [(r, c) for r, c in box if (down * (c - x) - right * (r - y)) ** 2 < down * down + right * right]
            affinity[i, j] = 1 - max(edge[r, c] for r, c in near)
    affinity = affinity**beta
    return affinity / affinity.sum(0)


@pytest.mark.parametrize("name", ["walk_small", "walk_short"])
def test_published_code(module, name):
    golden = np.load(GOLDEN / f"{name}.npz")
    x, edge, expected = (torch.as_tensor(golden[key])[None] for key in ("x", "edge", "out"))
    options = {key: golden[key].item() for key in ("radius", "beta", "steps")}
    torch.testing.assert_close(module.random_walk(x, edge, **options), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("radius", "beta"), [(5, 10.0), (2, 1.0), (3, 2.5), (8, 4.0), (1, 3.0)])
@pytest.mark.parametrize("size", [(9, 11), (3, 14), (12, 2), (1, 1), (1, 6)])
def test_dense_matrix_squared_8_times(module, radius, beta, size):
    x, edge = maps(2, 3, *size)
    walked = module.random_walk(x, edge, radius=radius, beta=beta)
    for b in range(2):
        matrix = transitions(edge[b], radius, beta)
        for _ in range(8):
            matrix = matrix @ matrix
        expected = (x[b] * (1 - edge[b])).flatten(1) @ matrix
        torch.testing.assert_close(walked[b].flatten(1), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 13])
def test_any_number_of_steps(module, steps):
    x, edge = maps(1, 2, 7, 20)
    expected = (x * (1 - edge)).flatten(2) @ torch.linalg.matrix_power(transitions(edge[0], 5, 10), steps)
    torch.testing.assert_close(module.random_walk(x, edge, steps=steps).flatten(2), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{"steps": 0}, {"radius": 1}, {"radius": 1, "steps": 3}])
def test_nowhere_to_go(module, options):
    x, edge = maps(2, 3, 6, 7)
    assert torch.equal(module.random_walk(x, edge, **options), x * (1 - edge)[:, None])


def test_five_makes_68_neighbours():
    assert len(reference.disc(5)) == 68 and reference.disc(1) == []
    assert set(reference.disc(2)) == {(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)} - {(0, 0)}
    assert set(reference.path(-2, 2)) == {(0, 0), (0, 1), (-1, 0), (-1, 1), (-1, 2), (-2, 1), (-2, 2)}


def test_an_edge_with_a_channel(module):
    x, edge = maps(2, 3, 6, 7, dtype=torch.float32)
    expected = module.random_walk(x, edge, steps=5)
    assert torch.equal(module.random_walk(x, edge[:, None], steps=5), expected)
    apart = torch.stack([edge, edge], 1)[:, 1:]  # a channel of a wider map
    assert torch.equal(module.random_walk(x, apart, steps=5), expected)


def test_nothing_passes_an_edge_of_one_nor_a_higher_one(module):
    x, edge = maps(1, 2, 9, 24, dtype=torch.float32)
    edge[..., 11] = 1
    expected = module.random_walk(x[..., :11], edge[..., :11], steps=20)
    torch.testing.assert_close(module.random_walk(x, edge, steps=20)[..., :11], expected)
    edge[..., 11] = 1.5
    torch.testing.assert_close(module.random_walk(x, edge, steps=20)[..., :11], expected)


def test_undefined_numbers_stay_within_their_map(module):
    x, edge = maps(2, 3, 6, 7, dtype=torch.float32)
    expected = module.random_walk(x, edge, steps=6)
    x[0, 1, 2, 3] = torch.nan
    walked = module.random_walk(x, edge, steps=6)
    assert walked[0, 1].isnan().any()
    walked[0, 1] = expected[0, 1]
    assert torch.equal(walked, expected)


def test_no_gradient(module):
    x, edge = maps(1, 2, 4, 5)
    assert not module.random_walk(x.requires_grad_(), edge.requires_grad_(), steps=2).requires_grad

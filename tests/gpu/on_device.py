"""The ops on a real GPU: `test_on_device.py` runs this file by pytest, once for each provider of CUDA kernels.

The provider is chosen by WILSON_CUDA_PROVIDER=cuda|triton before wilson.ops is imported, and holds for the process.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import cases, infinities
from tests.support.agreement import Expected, assert_survives_loss_scale, flat, tensors
from wilson import ops
from wilson.ops import _library, reference
from wilson.ops._registry import OPS

PROVIDER = {"cuda": "CUDA", "triton": "Triton"}[os.environ["WILSON_CUDA_PROVIDER"]]
DIFFERENTIABLE = [name for name, op in OPS.items() if op.differentiable]
EVERY = {dtype: cases.every(dtype) for dtype in cases.DTYPES}
EDGES = {
    # where the memory that threads share passes what a block has without asking, by dtype and layout
    "CUDA": (16, 17, 31, 32, 33, 61, 62, 63, 64, 65, 79, 80, 81, 170, 175, 176, 255, 256, 356, 367, 368, 513),
    # where the block of classes grows, or is taken more than once
    "Triton": (17, 33, 64, 65, 256, 513),
}[PROVIDER]


class Record(TorchDispatchMode):
    """Keeps the calls of registered ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "wilson":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def of(op: str, dtype: torch.dtype = torch.float32, name: str = "odd") -> cases.Case:
    return next(case for case in EVERY[dtype] if case.op == op and case.name == name)


def served(case: cases.Case) -> list[torch.Tensor]:
    return flat(case.on("cuda").value_and_grad(getattr(ops, case.op)))


def assert_same_bits(first, second) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_provider_serves_every_op():
    assert {_library.provider(op, "CUDA")[0] for op in OPS} == {PROVIDER}


@pytest.mark.parametrize("case", list(itertools.chain(*EVERY.values())), ids=lambda c: f"{c}-{c.args[0].dtype}"[:80])
def test_agrees_with_the_reference(case):
    Expected(case).assert_met_by(getattr(ops, case.op), "cuda")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_classes(op, layout, dtype):
    failed = []
    for classes in EDGES:
        case = cases.case(op, "classes", cases.Shape(2, classes, 6, 9, old=classes - 5), dtype, layout=layout)
        try:
            Expected(case).assert_met_by(getattr(ops, op), "cuda")
        except (AssertionError, RuntimeError) as error:
            failed.append((classes, str(error).splitlines()[0]))
    assert not failed


@pytest.mark.parametrize("op", infinities.OPS)
@pytest.mark.parametrize("shape", [infinities.SHAPE, infinities.MANY], ids=["few", "many"])
def test_infinite_and_undefined_numbers(op, shape):
    for case in infinities.of(op, shape):
        infinities.assert_as_the_reference(case, getattr(ops, op), "cuda")


@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_survive_a_large_loss_scale(op, dtype):
    function = getattr(ops, op)
    assert_survives_loss_scale(of(op, dtype), lambda *args, **options: _there_and_back(function, args, options))


def _there_and_back(function, args, options):
    """The op on the GPU for tensors of the CPU, whose gradients come back, too."""
    there = [a.cuda() if isinstance(a, torch.Tensor) else a for a in args]
    return function(*there, **options).cpu()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["odd", "long", "channels_last", "empty_batch"])
def test_writes_the_whole_of_its_outputs(op, name):
    """New tensors come filled with NaN (integers with their largest value) while the op runs."""
    torch.use_deterministic_algorithms(True)
    try:
        Expected(of(op, torch.float32, name)).assert_met_by(getattr(ops, op), "cuda")
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_same_bits_in_every_run_and_beside_any_neighbour(op, dtype):
    case = cases.case(op, "bits", cases.Shape(4, 21, 64, 66, old=16, scale=2), dtype).on("cuda")
    function = getattr(ops, op)
    together = flat(case.value_and_grad(function))
    for _ in range(10):
        assert_same_bits(together, flat(case.value_and_grad(function)))
    if together[0].dim():  # a loss is a mean over the batch
        alone = function(*(a[1:2] if isinstance(a, torch.Tensor) else a for a in case.args), **case.kwargs)
        assert all(torch.equal(a, b[1:2]) for a, b in zip(tensors(alone), together, strict=False))


@pytest.mark.parametrize("side", [20, 56, 64, 150])  # four planes, one plane, or none have room in shared memory
@pytest.mark.parametrize("op", cases.REFINING)
def test_refining_labelled_classes_gives_the_bits_of_all(op, side):
    case, refine = cases.case(op, "labelled", cases.Shape(3, 6, side, side + 3), torch.float32), getattr(ops, op)
    Expected(case).assert_met_by(refine, "cuda")
    image, mask = case.on("cuda").args
    labels = torch.tensor([[0, 1, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], device="cuda")
    every, shown = refine(image, mask), torch.nn.functional.pad(labels, (1, 0), value=1)
    assert torch.equal(refine(image, mask, image_labels=labels), every * shown[:, :, None, None])


@pytest.mark.parametrize("op", OPS)
def test_waits_for_the_stream_it_is_called_on(op):
    """On another stream than the default one, behind work that takes longer than any of the op's kernels."""
    case = cases.case(op, "stream", cases.Shape(4, 21, 32, 32, old=16), torch.float32).on("cuda")
    function = getattr(ops, op)
    expected = flat(case.value_and_grad(function))
    late = case.args[0].clone()
    first = torch.full_like(late, 0.25)
    waiting = replace(case, args=(first, *case.args[1:]))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        first.copy_(late)
        result = flat(waiting.value_and_grad(function))
    torch.cuda.synchronize()
    assert_same_bits(expected, result)


@pytest.mark.parametrize("op", OPS)
def test_replays_from_a_graph(op):
    shape = cases.Shape(4, 21, 32, 32, old=16)
    drawn = [cases.case(op, f"graph {i}", shape, torch.float32).on("cuda") for i in range(2)]
    fixed = cases.case(op, "graph", shape, torch.float32).on("cuda")
    call = repeatable(fixed)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    for case in drawn:
        with torch.no_grad():
            for to, value in zip(fixed.args, case.args, strict=True):
                if isinstance(to, torch.Tensor):
                    to.copy_(value)
        graph.replay()
        assert_same_bits(flat(case.value_and_grad(getattr(ops, op))), results)


def repeatable(case):
    """`Case.value_and_grad` as a call without anything of the CPU in it."""
    function = getattr(ops, case.op)
    if not case.differentiable:
        return lambda: list(tensors(case.run(function)))
    first = case.args[0].requires_grad_()
    result = case.run(function)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result)

    def call():
        result = case.run(function)
        return [result.detach(), torch.autograd.grad(result, first, weights)[0]]

    return call


@pytest.mark.parametrize("op", OPS)
def test_never_waits_for_the_device(op):
    call = repeatable(of(op).on("cuda"))
    call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op):
    case = of(op, torch.bfloat16).on("cuda")
    with Record() as record:
        case.value_and_grad(getattr(ops, op))
    assert record.calls
    for func, args, kwargs in record.calls:
        torch.library.opcheck(func, args, kwargs, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("op", OPS)
def test_past_four_gigabytes(op):
    """Two images of 2.2 GB in bfloat16: the second gives its bits alone, a loss about that of its small tile."""
    small = cases.case(op, "large", cases.Shape(2, 21, 24, 24, old=16, scale=1), torch.bfloat16).on("cuda")
    args, kwargs = tiled(small, 300), dict(small.kwargs, **({"iterations": 1} if op in cases.REFINING else {}))
    function = getattr(ops, op)
    with torch.no_grad():
        together = tensors(function(*args, **kwargs))
        if together[0].dim():
            alone = function(*(a[1:2] if isinstance(a, torch.Tensor) else a for a in args), **kwargs)
            assert all(torch.equal(a, b[1:2]) for a, b in zip(tensors(alone), together, strict=True))
            return
    del together
    scale = torch.tensor(2.0**18, device="cuda")  # a gradient of the mean over 52 million pixels is too small for bits
    large, tile = args[0].requires_grad_(), small.args[0].requires_grad_()
    value, expected = function(large, *args[1:], **kwargs), function(tile, *small.args[1:], **kwargs)
    torch.testing.assert_close(value, expected, rtol=1e-2, atol=0)
    gradient = torch.autograd.grad(value, large, scale)[0][:, :, -23:-1, -23:-1].float() * 300**2
    (of_tile,) = torch.autograd.grad(expected, tile, scale)
    of_tile = of_tile[:, :, 1:-1, 1:-1].float()
    torch.testing.assert_close(gradient, of_tile, rtol=2e-2, atol=1e-2 * float(of_tile.abs().max()))


def tiled(case: cases.Case, times: int) -> list:
    """The arguments of a case with all maps repeated along both sides."""
    args = [
        a.repeat(*(1,) * (a.dim() - 2), times, times) if isinstance(a, torch.Tensor) and a.dim() > 2 else a
        for a in case.args
    ]
    if case.op == "balanced_cross_entropy":
        args[2] = args[2] * times**2  # pixels of each class
    if case.op == "upsampled_argmax":
        args[1] = tuple(side * times for side in args[1])
    return args


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_compiles_without_a_break(op):
    case = of(op)
    function = torch.compile(getattr(ops, op), fullgraph=True)
    assert_same_bits(served(case), flat(case.on("cuda").value_and_grad(function)))


def test_gradients_of_autocast():
    scores = of("ngwp_focal_pool").args[0].cuda().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        pooled = ops.ngwp_focal_pool(scores)
    (grad,) = torch.autograd.grad(pooled.sum(), scores)
    (expected,) = torch.autograd.grad(reference.ngwp_focal_pool(scores).sum(), scores)
    torch.testing.assert_close(grad, expected, rtol=2e-2, atol=1e-3)

"""Every public op against the reference in float64, on every case; gradients, determinism, compilation, tracing."""

import inspect
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support import cases
from tests.support.agreement import assert_agrees, assert_survives_loss_scale, flat, tensors
from wilson import ops
from wilson.ops import _library, reference
from wilson.ops._registry import OPS

NAMES = list(OPS)
DIFFERENTIABLE = [name for name, op in OPS.items() if op.differentiable]
EVERY = {dtype: cases.every(dtype) for dtype in cases.DTYPES}


def of(op, dtype=torch.float64, name="odd"):
    return next(case for case in EVERY[dtype] if case.op == op and case.name == name)


@pytest.mark.parametrize("case", list(itertools.chain(*EVERY.values())), ids=lambda c: f"{c}-{c.args[0].dtype}"[:80])
def test_agrees_with_the_reference(case):
    assert_agrees(case, getattr(ops, case.op))


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("name", ["odd", "long", "one_pixel", "channels_last", "empty_batch"])
def test_writes_the_whole_of_its_outputs(op, name):
    """New tensors come filled with NaN (integers with their largest value) while the op runs."""
    torch.use_deterministic_algorithms(True)
    try:
        filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        assert filled and torch.empty(1).isnan().all()
        assert_agrees(of(op, torch.float32, name), getattr(ops, op))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_survive_a_large_loss_scale(op, dtype):
    assert_survives_loss_scale(of(op, dtype), getattr(ops, op))


@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradcheck(op, module):
    small = cases.Shape(2, 4, 3, 3, old=2, scale=2)
    case = cases.case(op, "gradcheck", small, torch.float64, spread=1.0)
    z = case.args[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: getattr(module, op)(z, *case.args[1:], **case.kwargs), z)
    assert case.value_and_grad(getattr(module, op))[1].abs().sum() > 0


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_second_backward_gives_the_same_bits(op):
    case = of(op, torch.float32)
    z = case.args[0].detach().requires_grad_()
    loss = getattr(ops, op)(z, *case.args[1:], **case.kwargs).sum()
    first, second = (torch.autograd.grad(loss, z, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_gradient_penalty_is_refused(op):
    case = of(op)
    z = case.args[0].detach().requires_grad_()
    loss = getattr(ops, op)(z, *case.args[1:], **case.kwargs).sum()
    (grad,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match=f"wilson.ops.reference.{op}"):
        grad.pow(2).sum().backward()


@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize("op", cases.REFINING)
@pytest.mark.parametrize("classes", [1, 2, 7, 21])
@pytest.mark.parametrize("scale", [1, 0.5])
def test_refining_labelled_classes_gives_the_bits_of_all(module, op, classes, scale):
    draw = cases.Draw("pamr", cases.Shape(5, classes, 12, 19), torch.float32)
    size = [round(side * scale) for side in (12, 19)]
    mask = cases.Draw("mask", cases.Shape(5, classes, *size), torch.float32).probabilities()
    image, labels = draw.image(), draw.image_labels().float()
    labels[0], labels[1] = 0, 1
    function = getattr(module, op)
    every = function(image, mask, iterations=3)
    shown = torch.nn.functional.pad(labels, (1, 0), value=1)[:, :, None, None]
    for given in (labels, labels.bool(), labels * 0.25):
        assert torch.equal(function(image, mask, image_labels=given, iterations=3), every * shown)


KERNELS = [op for op in NAMES if _library.has_kernel(op, "CPU")]  # the reference has the guarantees of PyTorch


@pytest.mark.skipif(not KERNELS, reason="installed without compiled kernels")
@pytest.mark.parametrize("op", KERNELS)
@pytest.mark.parametrize("name", ["long", "many_classes", "channels_last"])
def test_same_bits_for_any_threads_and_neighbours(op, name):
    case = of(op, torch.float32, name)
    function = getattr(ops, op)
    expected = flat(case.value_and_grad(function))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        again = flat(case.value_and_grad(function))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    if expected[0].dim():  # one image alone; a loss is a mean over the batch
        last = case.args[0].shape[0] - 1
        alone = function(*(a[last:] if isinstance(a, torch.Tensor) else a for a in case.args), **case.kwargs)
        assert all(torch.equal(a, b[last:]) for a, b in zip(tensors(alone), expected, strict=False))


@pytest.mark.skipif(not KERNELS, reason="installed without compiled kernels")
@pytest.mark.parametrize("op", KERNELS)
def test_same_bits_in_whatever_order_threads_finish(op):
    """Many chunks to an image, in float64: sums in double hide the order of parts in float32."""
    case = cases.case(op, "chunks", cases.Shape(1, 17, 256, 128, old=13, scale=1), torch.float64)
    case = replace(case, kwargs={"iterations": 1, "dilations": [1]}) if op in cases.REFINING else case
    function, threads = getattr(ops, op), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = flat(case.value_and_grad(function))
        torch.set_num_threads(4)
        for _ in range(6):
            again = flat(case.value_and_grad(function))
            assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("op", NAMES)
def test_four_threads_at_once(op):
    case = of(op, torch.float32, "long")
    expected = flat(case.value_and_grad(getattr(ops, op)))
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(case.value_and_grad, getattr(ops, op)) for _ in range(12)]
        for run in runs:
            assert all(torch.equal(a, b) for a, b in zip(flat(run.result()), expected, strict=True))


FAR = 2**31 + 64  # elements between the images: 64-bit offsets or bust


@pytest.mark.parametrize("op", NAMES)
def test_offsets_beyond_32_bits(op):
    case = of(op, torch.float16)
    far = torch.empty(FAR + 4096, dtype=torch.float16)  # of which only a few pages are ever touched
    args = list(case.args)
    first = args[0]
    args[0] = far.as_strided(first.shape, (FAR, *first.stride()[1:])).copy_(first)
    near = case.value_and_grad(getattr(ops, op))
    apart = cases.replace(case, args=tuple(args)).value_and_grad(getattr(ops, op))
    assert all(torch.equal(a, b) for a, b in zip(flat(near), flat(apart), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(
    os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 14 * 2**30, reason="needs 14 GiB of free memory"
)
def test_more_than_2_31_elements():
    side = 32800
    scores = torch.zeros(1, 2, side, side, dtype=torch.bfloat16)
    assert scores.numel() > 2**31
    scores[0, 1, -1, -1] = 8.0  # the very last of them
    scores.requires_grad_()
    pooled = ops.ngwp_focal_pool(scores, focal=False)  # S of class 1 is P/2, T is 8 at one pixel
    torch.testing.assert_close(pooled[0, 1].item(), 8.0 / (1 + side * side / 2), rtol=1e-3, atol=0)
    (grad,) = torch.autograd.grad(pooled[0, 1] * side * side, scores)
    assert grad[0, 1, -1, -1] != grad[0, 1, 0, 0] and grad[0, 1, -1, -2] == grad[0, 1, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("op", NAMES)
def test_compiles_with_inductor(op):
    case = of(op, torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(getattr(ops, op), fullgraph=True)
    for got, expected in zip(
        flat(case.value_and_grad(compiled)), flat(case.value_and_grad(getattr(ops, op))), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("op", NAMES)
def test_compiles_whole(op, backend):
    case = of(op, torch.float32)
    compiled = torch.compile(getattr(ops, op), fullgraph=True, backend=backend)
    expected, grad = case.value_and_grad(getattr(ops, op))
    actual, compiled_grad = case.value_and_grad(compiled)
    torch.testing.assert_close(actual, expected)
    if grad is not None:
        torch.testing.assert_close(compiled_grad, grad)


def test_compiles_with_inductor_and_dynamic_shapes():
    compiled = torch.compile(lambda z: ops.ngwp_focal_pool(z).sum(), fullgraph=True, dynamic=True)
    for size in (6, 9):
        z = torch.randn(2, 5, size, size + 1, requires_grad=True)
        (actual,) = torch.autograd.grad(compiled(z), z)
        (expected,) = torch.autograd.grad(ops.ngwp_focal_pool(z).sum(), z)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("op", NAMES)
def test_exports(op):
    case = of(op, torch.float32)

    exported = torch.export.export(Exported(case), inputs_of(case)).module()
    torch.testing.assert_close(exported(*inputs_of(case)), case.run(getattr(ops, op)))


def inputs_of(case):
    """What an exported op takes: all tensors, those given by name last."""
    size = (torch.empty(len(case.args[0]), *case.args[1]),) if case.op == "upsampled_argmax" else case.args[1:]
    return case.args[0], *size, *(value for value in case.kwargs.values() if isinstance(value, torch.Tensor))


class Exported(torch.nn.Module):
    def __init__(self, case):
        super().__init__()
        self.case = case
        self.names = [name for name, value in case.kwargs.items() if isinstance(value, torch.Tensor)]

    def forward(self, *inputs):
        named = dict(zip(reversed(self.names), reversed(inputs), strict=False))
        args = inputs[: len(inputs) - len(named)]
        if self.case.op == "upsampled_argmax":
            args = (args[0], args[1].shape[1:])
        return getattr(ops, self.case.op)(*args, **self.case.kwargs | named)


@pytest.mark.parametrize("op", NAMES)
def test_exports_with_sides_of_any_length(op):
    case = of(op, torch.float32)
    inputs = inputs_of(case)
    sides = tuple(dict.fromkeys(range(1 if a.dim() == 3 else 2, a.dim()), torch.export.Dim.DYNAMIC) for a in inputs)
    exported = torch.export.export(Exported(case), inputs, dynamic_shapes=(sides,)).module()
    other = cases.case(op, "other", cases.Shape(2, 7, 12, 10, old=4, scale=3.7), torch.float32)
    torch.testing.assert_close(exported(*inputs_of(other)), other.run(getattr(ops, op)))


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_transforms_of_torch_func(op):
    """grad, vmap over a dimension before the batch, and gradients of gradients."""
    case = cases.case(op, "func", cases.Shape(2, 4, 3, 3, old=2, scale=2), torch.float64, spread=1.0)
    z, function = case.args[0], lambda z: getattr(ops, op)(z, *case.args[1:], **case.kwargs).sum()
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(function(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(function)(z), expected)
    stacked = torch.stack([z, 2 * z])
    torch.testing.assert_close(torch.func.vmap(function)(stacked), torch.stack([function(z), function(2 * z)]))
    per_sample = torch.func.vmap(torch.func.grad(function))(stacked)
    torch.testing.assert_close(per_sample[0], expected)
    assert torch.func.grad(lambda z: torch.func.grad(function)(z).pow(2).sum())(z).isfinite().all()


@pytest.mark.parametrize("op", [op for op in NAMES if op not in DIFFERENTIABLE])
def test_vmap_of_what_has_no_gradient(op):
    case = of(op)
    stacked = torch.func.vmap(lambda z: getattr(ops, op)(z, *case.args[1:], **case.kwargs))(case.args[0][None])
    for got, expected in zip(tensors(stacked), tensors(case.run(getattr(reference, op))), strict=True):
        assert torch.equal(got[0], expected)


def test_a_label_to_skip_may_be_a_class():
    logits, labels = torch.randn(1, 300, 4, 4), torch.full((1, 8, 8), 255)
    assert ops.upsampled_cross_entropy(logits, labels, ignore_index=-1) > 0
    assert ops.upsampled_cross_entropy(logits, labels - 5, ignore_index=250) == 0


class RawCalls(TorchDispatchMode):
    """Keeps the registered ops that run within, and their arguments."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "wilson":
            self.found.append((func, args))
        return func(*args, **(kwargs or {}))


def raw_calls(case):
    with RawCalls() as calls:
        case.run(getattr(ops, case.op))
        if case.differentiable:
            case.value_and_grad(getattr(ops, case.op))
    return calls.found


@pytest.mark.parametrize("op", NAMES)
def test_registration(op):
    """On an ordinary case, and on those that leave the default of an argument."""
    reached = set()
    for case in EVERY[torch.float32]:
        if case.op == op and (case.name == "odd" or case.kwargs):
            for raw, args in raw_calls(case):
                reached.add(raw._opname)
                # raw ops carry no autograd formula: the public functions do
                torch.library.opcheck(raw, args, test_utils=("test_schema", "test_faketensor"))
    assert reached == set(OPS[op].raw)


@pytest.mark.parametrize("op", NAMES)
def test_fake_results_have_the_dtypes_of_real_ones(op):
    """In each dtype, with more classes than bytes tell apart, and where one argument alone is wider than the others."""
    narrow = of(op, torch.bfloat16)
    wide = [
        replace(narrow, args=(*narrow.args[:i], arg.double(), *narrow.args[i + 1 :]))
        for i, arg in enumerate(narrow.args)
        if isinstance(arg, torch.Tensor) and (arg.is_floating_point() or arg.dtype == torch.bool)
    ]
    wide += [
        replace(case, kwargs={**case.kwargs, name: option.double()})
        for case in EVERY[torch.bfloat16]
        for name, option in case.kwargs.items()
        if case.op == op and isinstance(option, torch.Tensor) and option.is_floating_point()
    ]
    for case in (narrow, of(op, torch.float64), of(op, torch.bfloat16, "many_classes"), *wide):
        for raw, args in raw_calls(case):
            torch.library.opcheck(raw, args, test_utils="test_faketensor")


@pytest.mark.parametrize("op", NAMES)
def test_cases_leave_the_default_of_every_argument(op):
    given = [case.kwargs for case in EVERY[torch.float32] if case.op == op]
    for name, parameter in inspect.signature(getattr(ops, op)).parameters.items():
        default = parameter.default
        values = [kwargs[name] for kwargs in given if name in kwargs]
        assert default is parameter.empty or any(isinstance(v, torch.Tensor) or v != default for v in values), (
            f"give {op} a case in cases.py with another {name} than {default!r}"
        )


def test_every_registered_op_belongs_to_a_public_one():
    registered = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names()
                  if name.startswith("wilson::")}  # fmt: skip
    assert registered == {raw for op in OPS.values() for raw in op.raw}


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_autocast(op):
    case = of(op, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, grad = case.value_and_grad(getattr(ops, op))
    expected, expected_grad = case.value_and_grad(getattr(ops, op))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_mixed_dtypes_compute_in_the_widest():
    z = torch.randn(2, 5, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = ops.localization_prior_loss(z, torch.randn(2, 3, 4, 4, dtype=torch.float64))
    assert loss.dtype == torch.float64
    loss.backward()
    assert z.grad is not None and z.grad.dtype == torch.bfloat16
    assert z.grad[:, :3].abs().sum() > 0 and z.grad[:, 3:].abs().sum() == 0


def test_empty_batches_are_zero():
    z, labels = torch.zeros(0, 3, 4, 4, requires_grad=True), torch.zeros(0, 8, 8, dtype=torch.long)
    for loss in (
        ops.localization_prior_loss(z, z[:, :2]),
        ops.soft_margin_loss(z, z),
        ops.pseudo_label_loss(z, z, z[:, :2], torch.zeros(0, 2)),
        ops.upsampled_soft_margin_loss(z, labels),
        ops.upsampled_cross_entropy(z, labels),
    ):
        assert loss.item() == 0
        assert torch.autograd.grad(loss, z)[0].shape == z.shape
    assert ops.ngwp_focal_pool(z).shape == (0, 3)


def test_no_counted_pixel_gives_zero():
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = ops.upsampled_cross_entropy(z, torch.full((2, 8, 8), 255))
    loss.backward()
    assert loss.item() == 0 and z.grad.abs().max() == 0


def test_argmax_above_255_classes_is_int64():
    logits = torch.zeros(1, 300, 2, 2)
    logits[:, 299] = 1
    assert ops.upsampled_argmax(logits, (3, 3)).dtype == torch.int64
    assert (ops.upsampled_argmax(logits, (3, 3)) == 299).all()
    assert ops.upsampled_argmax(logits[:, :255], (3, 3)).dtype == torch.uint8


@pytest.mark.parametrize("classes", [3, 21, 67])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_maps_with_gaps_give_the_same_bits(classes, dtype):
    """Some channels of a wider channels-last map: the classes of a pixel lie side by side, those of the next do not."""
    generator = torch.Generator().manual_seed(classes)
    values = torch.randn(2, 11, 13, classes + 2, generator=generator).to(dtype).permute(0, 3, 1, 2)[:, 1:-1]
    results = []
    for scores in (values.contiguous(), values):
        scores = scores.detach().requires_grad_()
        loss = ops.soft_margin_loss(scores, torch.sigmoid(values)) + ops.ngwp_focal_pool(scores).sum()
        results.append([loss.detach(), *torch.autograd.grad(loss, scores), ops.one_versus_rest(scores).detach()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)

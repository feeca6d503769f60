"""Every module computes what its op computes, with the op's defaults, and travels as modules do."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor

from tests.support import cases
from tests.support.agreement import flat
from wilson import nn, ops
from wilson.ops._registry import OPS

MODULES = {name: getattr(nn, name) for name in nn.__all__}


def word(name):
    """What the name of a module and that of its op have in common."""
    return name.replace("_", "").lower().removesuffix("loss")


OP_OF = {name: op for name in MODULES for op in OPS if word(op) == word(name)}
OTHER_OPTIONS = {
    "eps": 0.5, "gamma": 2.0, "lam": 0.1, "focal": False, "alpha": 0.75, "background": 0.25, "old_yields": True,
    "iterations": 2, "dilations": (1, 3), "background_ratio": 0.5, "class_ratio": 0.25, "floor": 0.125,
    "ignore_index": 1, "align_corners": True, "prior_weight": 0.3, "radius": 3, "beta": 2.0, "steps": 4,
}  # fmt: skip


def parameters(function):
    return {name: p for name, p in inspect.signature(function).parameters.items() if name != "self"}


def call_of(name):
    """A module with options that are not the defaults, its tensors, and the same as a case of the op."""
    op = OP_OF[name]
    shape = cases.Shape(2, 5, 6, 7, old=3, scale=2)
    draw = cases.Draw("modules", shape, torch.float32)
    options = {key: OTHER_OPTIONS[key] for key in parameters(MODULES[name])}
    if op in ("confident_labels", "balanced_cross_entropy") and "ignore_index" in options:
        options["ignore_index"] = 77  # no class, as these two want it
    case = cases.case(op, "modules", shape, torch.float32)
    tensors = {key: value for key, value in case.kwargs.items() if key not in options}
    if "prior_weight" in options:
        tensors["prior"] = draw.prior()
    if op == "soft_margin_loss":
        tensors["image_weight"] = torch.tensor([1.0, 0.25])
    if op in cases.REFINING:
        tensors["image_labels"] = draw.image_labels()
    return MODULES[name](**options), cases.Case(op, "modules", case.args, tensors), options


def test_every_op_has_its_module():
    assert sorted(OP_OF.values()) == sorted(OPS), "wilson/nn.py has no module of an op, or one of none"
    losses = {name for name, op in OP_OF.items() if op.endswith(("loss", "entropy"))}
    assert {name for name in MODULES if name.endswith("Loss")} == losses


@pytest.mark.parametrize("name", MODULES)
def test_options_and_tensors_are_the_ops(name):
    """Numbers go to the constructor, by name and with the op's default; tensors and sizes to forward."""
    options, forward, op = (
        parameters(MODULES[name]),
        parameters(MODULES[name].forward),
        parameters(getattr(ops, OP_OF[name])),
    )
    assert {**forward, **options}.keys() == op.keys() and not forward.keys() & options.keys()
    for key, parameter in {**forward, **options}.items():
        assert (parameter.kind, parameter.default, parameter.annotation) == (
            op[key].kind, op[key].default, op[key].annotation,
        ), key  # fmt: skip
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY and "Tensor" not in p.annotation for p in options.values())
    assert list(forward) == [key for key in op if key in forward]


@pytest.mark.parametrize("name", MODULES)
def test_computes_what_the_op_computes(name):
    module, case, options = call_of(name)
    op = getattr(ops, OP_OF[name])
    found = flat(case.value_and_grad(module))
    expected = flat(case.value_and_grad(lambda *args, **kwargs: op(*args, **kwargs, **options)))
    assert len(found) == len(expected) and all(map(torch.equal, found, expected))
    if options and name != "BalancedCrossEntropyLoss":  # whose one option names a label that is no class anyway
        plain = {key: value for key, value in case.kwargs.items() if key != "prior"}
        default = flat(cases.Case(case.op, "default", case.args, plain).value_and_grad(MODULES[name]()))
        assert not all(map(torch.equal, found, default)), "the options change nothing"


@pytest.mark.parametrize("name", MODULES)
def test_prints_its_options_and_holds_no_state(name):
    module, _, options = call_of(name)
    assert repr(module) == f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
    assert not module.state_dict() and not list(module.parameters()) and not list(module.buffers())
    with pytest.raises(TypeError):
        MODULES[name](surely_no_option=1)


@pytest.mark.parametrize("name", MODULES)
def test_travels(name):
    module, case, _ = call_of(name)
    expected = flat(case.value_and_grad(module))
    moved = copy.deepcopy(module).to("cpu", torch.float64).eval()
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module), moved):
        assert repr(other) == repr(module)
        assert all(map(torch.equal, flat(case.value_and_grad(other)), expected))


@pytest.mark.parametrize("name", MODULES)
def test_compiles_whole(name):
    module, case, _ = call_of(name)
    torch.compiler.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    found, expected = flat(case.value_and_grad(compiled)), flat(case.value_and_grad(module))
    assert all(isinstance(value, Tensor) for value in found)
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value, wanted)

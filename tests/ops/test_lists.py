"""Whoever adds an op and forgets a part of it is told which, and where it belongs."""

import inspect
import pkgutil
from pathlib import Path

import pytest
import torch

from tests.support import cases
from wilson import ops
from wilson.ops import reference
from wilson.ops._registry import OPS

ROOT = Path(__file__).parents[2]
FAMILIES = {op.family for op in OPS.values()}


def test_every_family_is_imported():
    found = {module.name for module in pkgutil.iter_modules(ops.__path__) if not module.name.startswith("_")}
    assert found - {"reference"} == FAMILIES, "each family has its line in wilson/ops/__init__.py"


@pytest.mark.parametrize("op", OPS)
def test_every_op_is_exported(op):
    text = f"wilson/ops/{OPS[op].family}.py has no {op} in its __all__"
    assert inspect.isfunction(getattr(ops, op, None)) and op in ops.__all__, text


def test_every_export_is_registered():
    functions = {name for name, value in vars(ops).items() if inspect.isfunction(value)}
    assert functions - {"providers"} <= set(OPS), "a public function lacks @_registry.op"
    assert set(ops.__all__) == {*OPS, "providers", "reference"}


@pytest.mark.parametrize("op", OPS)
def test_gradient_goes_to_the_first_argument(op):
    """As the cases and benchmarks take it."""
    first = next(iter(inspect.signature(getattr(ops, op)).parameters))
    assert OPS[op].gradient_to in ("", first)


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_definition_inputs_counts_and_cases(op):
    assert hasattr(reference, op), f"wilson/ops/reference.py does not define {op}"
    assert op in cases.INPUTS, f"give {op} its inputs in cases.INPUTS"
    assert op in cases.WORK, f"give {op} its least work in cases.WORK"
    named = {case.name for case in cases.FAMILIES[OPS[op].family](torch.float32) if case.op == op}
    assert named >= set(cases.shapes_of(op)), f"cases.{OPS[op].family} has no cases of {op}"


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_kernel_for_every_backend(op):
    family = OPS[op].family
    for name in OPS[op].raw:
        for file in (f"csrc/cpu/{family}.cpp", f"csrc/cuda/{family}.cu"):
            assert f'm.impl("{name}"' in (ROOT / file).read_text(), f"{file} registers no kernel of {name}"
        assert f"def {name}(" in (ROOT / f"kernels/{family}.py").read_text(), f"kernels/{family}.py launches no {name}"

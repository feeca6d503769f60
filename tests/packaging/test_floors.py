"""Imports go one way, down the floors of docs/design.md; imports inside functions and for types count, too."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOORS = ("wilson", "__main__")  # `import wilson` and `python -m wilson` lead to every floor
NATIVE = ("_C", "kernels")  # C++ and Triton, which are no Python of this folder


def floors() -> dict[str, int]:
    """The number of each room's floor, counted from the top."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## Floors\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    numbered = re.findall(r"^(\d+)\. ((?:`\w+`(?:, )?)+):", section, re.MULTILINE)
    return {room: int(number) for number, names in numbered for room in re.findall(r"\w+", names)}


def room_of(module: str) -> str:
    """The folder or file of wilson/ that a module belongs to."""
    return ([*module.split("."), "wilson"])[1] if "." in module else module


def imports_of(path: Path) -> Iterator[str]:
    """What a file imports, wherever in it, with its full name; of `from a import b` it is `a.b`."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            where = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{where}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = ast.unparse(node.args[0]).strip("f'\"")
            above = len(name) - len(name.lstrip("."))
            yield ".".join([*package[: len(package) - above + 1], name.lstrip(".")]) if above else name


@functools.cache
def imports() -> dict[Path, list[str]]:
    """What each file of wilson/ imports; kernels/ has its own place in the sources."""
    files = sorted((ROOT / "wilson").rglob("*.py"))
    return {path.relative_to(ROOT / "wilson"): list(imports_of(path)) for path in files}


@functools.cache
def arrows() -> dict[tuple[str, str], list[str]]:
    """Which rooms import from which others, and the files and names that make it so."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path, names in imports().items():
        room = "wilson" if path.name == "__init__.py" and len(path.parts) == 1 else path.parts[0].removesuffix(".py")
        for name in names:
            other = room_of(name)
            if name.split(".")[0] == "wilson" and other not in (room, "__version__", *NATIVE):
                found[room, other].append(f"{path}: {name}")
    return found


def test_every_room_has_a_floor() -> None:
    rooms = {path.parts[0].removesuffix(".py") for path in imports()} - {"__init__", *DOORS}
    assert set(floors()) == rooms


def test_imports_go_down() -> None:
    level = floors()
    inside = {arrow: where for arrow, where in arrows().items() if arrow[0] not in DOORS}
    assert len(inside) > 50
    assert {arrow: where for arrow, where in inside.items() if level[arrow[0]] > level[arrow[1]]} == {}
    TopologicalSorter({room: {b for a, b in inside if a == room} for room in level}).prepare()  # raises on a cycle


# What a room may use: less than its floor allows
NARROW = {
    "ops": set(),
    "nn": {"ops"},
    "patch": {"ops"},
    "config": {"errors"},
    "models": {"atomic", "config", "errors", "ops", "tensor_files"},
    "methods": {"config", "data", "distributed", "models", "ops"},
    "pictures": {"config", "errors"},
    "report": {"atomic", "config", "errors", "pictures", "run_folder"},
    "errors": set(),
    "atomic": {"errors"},
    "tensor_files": {"errors"},
    "run_folder": set(),
}


@pytest.mark.parametrize("room", NARROW)
def test_rooms_that_know_little(room: str) -> None:
    assert {b for a, b in arrows() if a == room} <= NARROW[room]


def test_models_and_data_do_not_know_each_other() -> None:
    assert not {("models", "data"), ("data", "models")} & arrows().keys()


def test_methods_know_batches_and_no_other_data() -> None:
    assert {where.split(": ")[1] for where in arrows()["methods", "data"]} == {"wilson.data.loading.Batch"}


def test_configurations_need_no_torch() -> None:
    named = {name.split(".")[0] for path, names in imports().items() if path.parts[0] == "config" for name in names}
    assert "dataclasses" in named and not named & {"torch", "torchvision", "timm"}


def test_kernels_are_imported_in_one_place() -> None:
    found = {(room_of(name), str(path)) for path, names in imports().items() for name in names}
    assert {pair for pair in found if pair[0] in NATIVE} == {("kernels", "ops/_library.py")}


HEAVY = {"torchvision", "timm", "tyro", "pydantic", "PIL", "yaml", "matplotlib", "tensorboard", "triton"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("wilson", {"torch", "numpy", *HEAVY}),
        ("wilson.ops", HEAVY),
        ("wilson.nn", HEAVY),
        ("wilson.patch", {"transformers", "mmseg", "segmentation_models_pytorch", *HEAVY}),
        ("wilson.config", {"torch", "torchvision", "timm"}),
        ("wilson.cli", {"torch", "torchvision", "timm", "matplotlib", "triton"}),
    ],
)
def test_imports_stay_light(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted(set({sorted(absent)}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_wilson_finds_its_names_when_they_are_asked_for() -> None:
    code = (
        "import sys, wilson\n"
        "assert {'Config', 'Predictor', 'run', 'load'} <= set(dir(wilson)) and 'torch' not in sys.modules\n"
        "from wilson.config import Config\n"
        "assert wilson.Config is Config and 'torch' not in sys.modules\n"
        "from wilson.inference.predict import Predictor\n"
        "from wilson.runs.run import run\n"
        "assert wilson.Predictor is Predictor and wilson.run is run\n"
        "try:\n"
        "    wilson.nothing\n"
        "except AttributeError as error:\n"
        "    assert 'nothing' in str(error)\n"
        "else:\n"
        "    raise AssertionError\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

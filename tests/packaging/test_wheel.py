"""What is built from the sources installs and works elsewhere, in every mode of WILSON_BUILD."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import setuptools
import torch

from wilson.ops._registry import OPS

ROOT = Path(__file__).resolve().parents[2]
SWITCHES = ("WILSON_BUILD", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH", "DEBUG", "PYTHONPATH")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("ninja")), reason="needs cmake and ninja"),
    pytest.mark.skipif(int(setuptools.__version__.split(".")[0]) < 77, reason="needs setuptools 77 to build offline"),
]

# Runs the first compiled op, forward and backward, and tells what served it.
TRY_OP = """
import json, sys
import torch
import wilson
from wilson import ops
from wilson.ops import _library

scores = torch.randn(2, 5, 6, 7, requires_grad=True)
ops.ngwp_focal_pool(scores).sum().backward()
again = scores.detach().clone().requires_grad_()
ops.reference.ngwp_focal_pool(again).sum().backward()
print(json.dumps({
    "file": wilson.__file__,
    "error": (scores.grad - again.grad).abs().max().item(),
    "provider": _library.provider("ngwp_focal_pool", "CPU")[0],
    "reason": _library.provider("ngwp_focal_pool", "CPU")[1],
    "info": ops._library.build_info(),
}))
"""


def run(command: Sequence[object], folder: Path, **switches: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    environment.update(switches)
    out, err = subprocess.PIPE, subprocess.STDOUT
    return subprocess.run(list(map(str, command)), cwd=folder, env=environment, stdout=out, stderr=err, text=True)


def pip(*arguments: object, folder: Path, python: object = sys.executable, **switches: str) -> str:
    """Run pip offline: the build uses this environment's setuptools, the dependencies are there."""
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = run([sys.executable, "-m", "pip", "--python", python, *arguments, *offline], folder, **switches)
    assert done.returncode == 0, done.stdout
    return done.stdout


def copy_of_sources(folder: Path) -> Path:
    """What a build reads, without the products of earlier ones."""
    sources = folder / "sources"
    for name in ("csrc", "kernels", "tools", "wilson"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, sources)
    return sources


def fresh_environment(folder: Path) -> Path:
    """A virtual environment that sees this one's packages, torch among them, but none installed as editable."""
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).stdout.strip()
    Path(site, "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def try_op(python: Path, folder: Path) -> dict[str, Any]:
    done = run([python, "-c", TRY_OP], folder)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout.splitlines()[-1])


def wheel_of(sources: Path, out: Path, **switches: str) -> Path:
    pip("wheel", sources, "-w", out, folder=out.parent, **switches)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    sources = copy_of_sources(folder)
    # As pip calls it: without the current folder on the path, where kernels/ would hide the package of that name, whose
    # entry point setuptools calls.
    hook = "import sys; sys.path.remove(''); import wilson_backend; wilson_backend.build_sdist('../dist')"
    done = run([sys.executable, "-c", hook], sources, PYTHONPATH=str(sources / "tools" / "build"))
    assert done.returncode == 0, done.stdout
    (archive,) = (folder / "dist").glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU wheel, built from the sdist: it proves that nothing is missing there."""
    return wheel_of(sdist, tmp_path_factory.mktemp("wheel") / "dist", WILSON_BUILD="cpu")


def python_files() -> set[str]:
    packages = {f"wilson/{path.relative_to(ROOT / 'wilson')}" for path in (ROOT / "wilson").rglob("*.py")}
    return packages | {f"wilson/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}


def test_sdist_holds_the_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.[ch]*")}
    assert sources | {"CMakeLists.txt", "LICENSE", "README.md", "setup.py", "tools/build/cuda.cmake"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_is_for_every_python_and_complete(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"wilson_seg-0.1.0-py3-none-{platform}.whl"
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name for name in names if name.endswith(".py")} == python_files()
    page = {
        f"wilson/serving/{path.name}" for kind in ("css", "js") for path in (ROOT / "wilson/serving").glob(f"*.{kind}")
    }
    assert {name for name in names if name.endswith((".css", ".js"))} == page and len(page) == 3
    assert [name for name in names if name.endswith(".so")] == ["wilson/_C_cpu.so"]


def test_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    python = fresh_environment(tmp_path)
    pip("install", wheel, folder=tmp_path, python=python)
    result = try_op(python, tmp_path)
    assert str(result["file"]).startswith(str(tmp_path))
    assert result["provider"] == "C++"
    assert result["error"] < 1e-6
    assert result["info"]["cuda_architectures"] == []
    assert result["info"]["cuda"] == "WILSON_BUILD=cpu"
    assert (tmp_path / "venv" / "bin" / "wilson").exists()


def bare_environment(folder: Path) -> Path:
    """A virtual environment that sees torch, numpy and what these need, and nothing else."""
    venv.create(folder / "bare", with_pip=False)
    python = folder / "bare" / "bin" / "python"
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).stdout.strip())
    wanted, linked = ["torch", "numpy"], set()
    while wanted:
        name = wanted.pop()
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform, or of an extra
        if found.name in linked:
            continue
        linked.add(found.name)
        for top in {path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "__pycache__")}:
            place = Path(str(found.locate_file(top)))
            if place.exists() and not (site / top).exists():
                (site / top).symlink_to(place)
        wanted += [re.match(r"[\w.-]+", line)[0] for line in found.requires or () if "extra ==" not in line]  # type: ignore[index]
    return python


def test_every_op_runs_with_torch_and_numpy_alone(wheel: Path, tmp_path: Path) -> None:
    python = bare_environment(tmp_path)
    pip("install", wheel, folder=tmp_path, python=python)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    done = run([python, "-m", "tests.support.every_op"], tmp_path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.strip().endswith(f"{len(OPS)} ops as the reference, by C++")
    for absent in ("PIL", "torchvision", "tyro"):
        assert run([python, "-c", f"import {absent}"], tmp_path).returncode != 0


HUB = """
import pathlib, sys
import kernels, torch

ops = kernels.get_local_kernel(pathlib.Path("hub"), backend="cpu")
scores = torch.randn(2, 5, 6, 7, requires_grad=True)
ops.ngwp_focal_pool(scores).sum().backward()
assert scores.grad.any() and not [name for name in sys.modules if name.split(".")[0] == "wilson"]
ops.providers()
"""


def test_the_package_kernels_loads_the_ops_from_a_folder(wheel: Path, tmp_path: Path) -> None:
    done = run([sys.executable, ROOT / "tools" / "hub_kernel.py", "hub", wheel], tmp_path)
    assert done.returncode == 0, done.stdout
    done = run([sys.executable, "-c", HUB], tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout
    assert re.search(r"ngwp_focal_pool +C\+\+", done.stdout)
    sources = set(re.findall(r'"(csrc/[^"]+)"', (tmp_path / "hub" / "build.toml").read_text()))
    kernels = {
        path.relative_to(ROOT).as_posix() for kind in ("cpp", "cu") for path in (ROOT / "csrc").rglob(f"*.{kind}")
    }
    assert kernels - {"csrc/module.cpp"} <= sources and all((ROOT / source).exists() for source in sources)


def test_none_builds_a_pure_wheel_whatever_lies_around(wheel: Path, tmp_path: Path) -> None:
    sources = copy_of_sources(tmp_path)
    for leftover in (f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "_C_cpu.so", "_C_cuda.so"):
        (sources / "wilson" / leftover).write_bytes(b"of an earlier build")
    pure = wheel_of(sources, tmp_path / "dist", WILSON_BUILD="none", PATH="/nonexistent")  # no compiler needed
    assert pure.name == "wilson_seg-0.1.0-py3-none-any.whl"
    assert not [name for name in zipfile.ZipFile(pure).namelist() if name.endswith(".so")]

    python = fresh_environment(tmp_path)
    pip("install", pure, folder=tmp_path, python=python)
    result = try_op(python, tmp_path)
    assert result["provider"] == "reference"
    assert "WILSON_BUILD=none" in result["reason"]
    assert result["info"] is None


def test_none_ignores_the_library_of_an_earlier_editable_install(wheel: Path, tmp_path: Path) -> None:
    sources = copy_of_sources(tmp_path)
    library = "wilson/_C_cpu.so"
    zipfile.ZipFile(wheel).extract(library, sources)
    python = fresh_environment(tmp_path)
    pip("install", "-e", sources, folder=tmp_path, python=python, WILSON_BUILD="none")
    result = try_op(python, tmp_path)
    assert str(result["file"]).startswith(str(sources))
    assert (sources / library).exists()
    assert result["provider"] == "reference"
    assert result["info"] is None


def broken_toolkit(folder: Path) -> str:
    """A CUDA_HOME whose nvcc prints an error and fails, whatever it is asked."""
    nvcc = folder / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'fatal: this toolkit is broken' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    return str(folder / "cuda")


def test_auto_with_a_broken_toolkit_builds_for_the_cpu_and_says_why(tmp_path: Path) -> None:
    sources = copy_of_sources(tmp_path)
    wheel = wheel_of(sources, tmp_path / "dist", CUDA_HOME=broken_toolkit(tmp_path), DEBUG="1")
    python = fresh_environment(tmp_path)
    pip("install", wheel, folder=tmp_path, python=python)
    result = try_op(python, tmp_path)
    assert result["provider"] == "C++"
    assert result["info"]["debug"] is True
    assert result["info"]["cuda_architectures"] == []
    assert ("does not run" if torch.version.cuda else "without CUDA") in result["info"]["cuda"]


def test_cuda_with_a_broken_toolkit_fails_loudly(tmp_path: Path) -> None:
    sources = copy_of_sources(tmp_path)
    with pytest.raises(AssertionError, match=r"wilson: the build failed.*(does not run|without CUDA)"):
        wheel_of(sources, tmp_path / "dist", WILSON_BUILD="cuda", CUDA_HOME=broken_toolkit(tmp_path))


@pytest.mark.skipif(not torch.version.cuda or not shutil.which("nvcc"), reason="needs nvcc and a torch with CUDA")
def test_auto_leaves_out_a_cuda_part_that_does_not_compile(tmp_path: Path) -> None:
    sources = copy_of_sources(tmp_path)
    (sources / "csrc" / "cuda" / "broken.cu").write_text("#error not for this toolkit\n")
    wheel = wheel_of(sources, tmp_path / "dist", DEBUG="1", TORCH_CUDA_ARCH_LIST="9.0")
    python = fresh_environment(tmp_path)
    pip("install", wheel, folder=tmp_path, python=python)
    result = try_op(python, tmp_path)
    assert result["provider"] == "C++"
    assert result["info"]["cuda_architectures"] == []
    assert "not for this toolkit" in result["info"]["cuda"]


def test_cmake_by_itself_writes_into_its_build_folder_only(tmp_path: Path) -> None:
    sources = copy_of_sources(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in sources.rglob("*") if path.is_file()}
    options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Debug", "-DWILSON_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (["cmake", "-S", ".", "-B", "build", *options], ["cmake", "--build", "build"]):
        done = run(command, sources)
        assert done.returncode == 0, done.stdout
    after = {path: path.stat().st_mtime_ns for path in sources.rglob("*") if path.is_file()}
    assert {path: after[path] for path in after if not path.is_relative_to(sources / "build")} == before

    show = "import json, sys; sys.path.insert(0, 'build'); import torch, _C; print(json.dumps(_C.build_info()))"
    info = json.loads(run([sys.executable, "-c", show], sources).stdout.splitlines()[-1])
    assert info["cuda"] == "WILSON_CUDA=OFF"
    assert info["debug"] is True

"""The build's switches, and what the installed library tells of itself."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import wilson
from wilson.ops import _library

ROOT = Path(__file__).resolve().parents[2]


def loaded(name: str) -> ModuleType:
    """A module of tools/build, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / "build" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


native, torch_probe = loaded("native"), loaded("torch_probe")
LIBRARY = _library.CPU_LIBRARY
if (INFO := _library.build_info() or {}) == {}:
    pytest.skip("installed without compiled kernels", allow_module_level=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0", "80-real"),
        ("8.0;9.0+PTX", "80-real;90"),
        ("8.0, 8.6 9.0a 10.0f+PTX", "80-real;86-real;90a-real;100f"),
        ("12.0+PTX", "120"),
        ("8.0;8.0", "80-real"),
        ("Ampere Hopper", "80-real;86;90"),
    ],
)
def test_architecture_list_of_torch_is_translated(text: str, expected: str) -> None:
    assert native.cuda_architectures(text) == expected


@pytest.mark.parametrize("text", ["80", "sm_80", "8.0+ptx", "8", "Volcano", ";"])
def test_unknown_architecture_ends_with_one_line(text: str) -> None:
    with pytest.raises(native.BuildError, match="TORCH_CUDA_ARCH_LIST"):
        native.cuda_architectures(text)


@pytest.mark.parametrize(
    ("mode", "text", "expected"),
    [
        ("cpu", "Volcano", []),
        ("cpu", "9.0", []),
        ("auto", "All", []),
        ("auto", "common", []),
        ("auto", "9.0", ["-DCMAKE_CUDA_ARCHITECTURES=90-real"]),
        ("auto", "native", ["-DCMAKE_CUDA_ARCHITECTURES=native"]),
        ("auto", "Kepler+Tesla", ["-DWILSON_CUDA=OFF"]),
        ("cuda", "8.0 9.0+PTX", ["-DCMAKE_CUDA_ARCHITECTURES=80-real;90"]),
    ],
)
def test_architectures_never_end_a_build_that_can_do_without(
    mode: str, text: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = configured(monkeypatch, WILSON_BUILD=mode, TORCH_CUDA_ARCH_LIST=text)
    assert [option for option in expected if option in command] == expected
    assert ("-DCMAKE_CUDA_ARCHITECTURES" in " ".join(command)) == any("ARCHITECTURES" in option for option in expected)


def test_architectures_that_cannot_be_read_end_a_build_that_asks_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(native.BuildError, match="TORCH_CUDA_ARCH_LIST"):
        configured(monkeypatch, WILSON_BUILD="cuda", TORCH_CUDA_ARCH_LIST="Kepler")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", "Release"), ("0", "Release"), ("false", "Release"), ("OFF", "Release"), ("1", "Debug"), ("true", "Debug")],
)
def test_debug_builds_are_asked_for(value: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"-DCMAKE_BUILD_TYPE={expected}" in configured(monkeypatch, WILSON_BUILD="cpu", DEBUG=value)


def configured(monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[str]:
    """The command that CMake is configured by, with these switches."""
    commands: list[list[str]] = []
    for name in ("DEBUG", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(native, "_run", commands.append)
    monkeypatch.setattr(native, "check_machine", lambda: None)
    monkeypatch.setattr(native.shutil, "which", lambda name: f"/usr/bin/{name}")
    native.build(Path("source"), Path("build"))
    return commands[0]


def test_job_count_follows_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAX_JOBS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(native, "_free_memory", lambda: 7 << 30)
    assert native.jobs() == 3
    monkeypatch.setattr(native, "_free_memory", lambda: 1 << 30)
    assert native.jobs() == 1
    monkeypatch.setattr(native, "_free_memory", lambda: 1 << 40)
    assert native.jobs() == 16
    monkeypatch.setenv("MAX_JOBS", "5")
    assert native.jobs() == 5
    monkeypatch.setenv("MAX_JOBS", "many")
    with pytest.raises(native.BuildError, match="MAX_JOBS"):
        native.jobs()


def test_free_memory_is_that_of_the_machine() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < native._free_memory() <= total


def test_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WILSON_BUILD", "gpu")
    with pytest.raises(native.BuildError, match="auto, cpu, cuda, none"):
        native.mode()


def test_machine_without_compiler_is_told_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(native.BuildError, match=r"no C\+\+ compiler.*WILSON_BUILD=none"):
        native.check_machine()


@pytest.mark.parametrize(("system", "machine"), [("darwin", "arm64"), ("win32", "AMD64"), ("linux", "riscv64")])
def test_other_machine_is_told_the_way_out(monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(native.BuildError, match="WILSON_BUILD=none"):
        native.check_machine()


def test_probe_finds_the_torch_of_this_environment() -> None:
    found = torch_probe.probe()
    assert found == torch_probe.Torch(str(Path(torch.__file__).parent), torch.__version__, torch.version.cuda or "")


def test_build_info_tells_what_was_built() -> None:
    info = INFO
    assert info["version"] == wilson.__version__ == importlib.metadata.version("wilson-seg")
    assert re.match(r"(gcc|clang) \d+\.\d+", info["compiler"])
    assert info["cpu_level"] in info["cpu_levels"]
    clones = platform.machine() == "x86_64" and info["compiler"].startswith("gcc")
    assert info["cpu_levels"] == (["baseline", "avx2", "avx512"] if clones else ["baseline"])
    assert info["torch_target"] == "2.10"
    assert info["debug"] is False
    if info["cuda_architectures"]:
        assert all(re.fullmatch(r"\d+[af]?(\+PTX)?", name) for name in info["cuda_architectures"])
        assert re.fullmatch(r"\d+\.\d+\.\d+", info["cuda"])
    else:
        assert len(info["cuda"]) > 10  # the reason


def test_the_module_of_this_interpreter_tells_the_same() -> None:
    module = pytest.importorskip("wilson._C", reason="only editable installs have it")
    assert Path(module.__file__).name.startswith(f"_C.cpython-{sys.version_info.major}{sys.version_info.minor}")
    assert module.build_info() == INFO


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_the_libraries_need_no_python() -> None:
    for library in LIBRARY.parent.glob("_C_*.so"):
        wanted = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True).stdout
        assert "aoti_torch" in wanted and " Py" not in wanted


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_libraries_carry_no_path_of_the_build() -> None:
    libraries = [LIBRARY]
    if INFO["cuda_architectures"]:
        libraries.append(LIBRARY.with_name("_C_cuda.so"))
    for library in libraries:
        dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
        assert "[libtorch_cpu.so]" in dynamic
        assert "RPATH" not in dynamic
        assert "RUNPATH" not in dynamic
        for path in (ROOT, Path(torch.__file__).parent):
            assert str(path).encode() not in library.read_bytes()


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
@pytest.mark.skipif("avx2" not in INFO["cpu_levels"], reason="built for one CPU level")
def test_wide_instructions_stay_in_their_level() -> None:
    """A 256- or 512-bit register outside the AVX clones would end the process on a machine without AVX."""
    code = subprocess.run(["objdump", "-d", "-C", "--no-show-raw-insn", LIBRARY], capture_output=True, text=True).stdout
    wide = set()
    for line in code.splitlines():
        if match := re.match(r"[0-9a-f]+ <(.*)>:", line):
            name = match.group(1)
        elif "%ymm" in line or "%zmm" in line:
            wide.add(name)
    assert wide  # the clones are there
    assert not [name for name in wide if not re.search(r"x86.64.v[34]|avx", name)]

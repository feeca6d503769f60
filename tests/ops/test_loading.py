"""What importing wilson.ops loads: nothing initialises CUDA, and the CUDA library needs no Python module."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wilson.ops import _library
from wilson.ops._registry import OPS

ROOT = Path(__file__).parents[2]

IMPORT = """
import torch

def refuse(*_):
    raise AssertionError("CUDA was initialised")

torch.cuda.is_available = torch.cuda.get_device_capability = torch.cuda.get_device_properties = refuse
torch.cuda._lazy_init = torch.cuda.init = torch._C._cuda_init = torch._C._cuda_getDeviceCount = refuse
torch.cuda.device_count = lambda: 1
import wilson.ops
"""


@pytest.mark.parametrize("provider", ["", "triton", "reference"])
def test_import_does_not_initialise_cuda(provider):
    environment = os.environ | {"WILSON_CUDA_PROVIDER": provider}
    result = subprocess.run([sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


WITHOUT_KERNELS = """
import torch

def refuse(library):
    raise OSError(library)

torch.ops.load_library = refuse
from tests.support import every_op
from wilson.ops import _library

_library.CPU_LIBRARY = _library.CPU_LIBRARY.with_name("none.so")
every_op.main()
"""


def test_every_op_and_its_gradient_work_without_kernels():
    result = subprocess.run([sys.executable, "-c", WITHOUT_KERNELS], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith(f"{len(OPS)} ops as the reference, by reference")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A CUDA library for sm_80 and newer, on a torch that has CUDA; returns what is loaded."""
    path = tmp_path / "_C_cuda.so"
    path.write_bytes(b"\x7fELF\0wilson CUDA architectures: 90-real;80-real;100\0rest")
    loaded: list[str] = []
    monkeypatch.setattr(_library, "CUDA_LIBRARY", path)
    monkeypatch.setattr(_library, "_installed_without_kernels", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    return loaded


def test_the_cuda_library_loads_without_the_python_module(library, monkeypatch):
    monkeypatch.setattr(_library, "build_info", lambda: None)
    monkeypatch.setattr(_library, "_capabilities", lambda: [90])
    assert _library._load_cuda_library() == ""
    assert library == [str(_library.CUDA_LIBRARY)]


def test_an_old_device_keeps_the_cuda_library_out(library, monkeypatch):
    monkeypatch.setattr(_library, "build_info", lambda: None)
    monkeypatch.setattr(_library, "_capabilities", lambda: [70, 75])
    assert _library._load_cuda_library() == "the device is sm_75, the CUDA library was built for sm_80 and newer"
    assert not library


def test_a_left_over_cuda_library_stays_out(library, monkeypatch):
    monkeypatch.setattr(_library, "build_info", lambda: {"cuda_architectures": [], "cuda": "WILSON_CUDA=OFF"})
    assert "WILSON_CUDA=OFF" in _library._load_cuda_library()
    assert not library


class Nvml:
    """The calls of NVML that are made, on a machine with two GPUs."""

    devices = ((7, 5), (9, 0))
    closed = False

    def nvmlInit_v2(self):  # noqa: N802
        return 0

    def nvmlDeviceGetCount_v2(self, count):  # noqa: N802
        count._obj.value = len(self.devices)

    def nvmlDeviceGetHandleByIndex_v2(self, i, handle):  # noqa: N802
        handle._obj.value = i + 1
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle, major, minor):  # noqa: N802
        major._obj.value, minor._obj.value = self.devices[handle.value - 1]
        return 0

    def nvmlShutdown(self):  # noqa: N802
        self.closed = True


def test_capabilities_come_from_nvml(monkeypatch):
    nvml = Nvml()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: nvml)
    assert _library._capabilities() == [75, 90]
    assert nvml.closed


def test_a_machine_without_nvml_tells_no_capability(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert _library._capabilities() == []

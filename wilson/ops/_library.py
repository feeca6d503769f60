"""Loads what was built, gives each device its provider, and says why a better one is missing.

Every op is registered by its family's Python file with the reference as its body, so every device has an answer.
Compiled code plugs kernels into dispatch keys: CPU from `_C_cpu.so`; CUDA from `_C_cuda.so`, else from Triton.
`WILSON_CUDA_PROVIDER=cuda|triton|reference`, read once at import, chooses for CUDA.

Nothing here initialises CUDA: a process that is forked afterwards, as the workers of a loader are, could not use it.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._registry import OPS

DEVICES = ("CPU", "CUDA")
REFERENCE = "reference"
CPU_LIBRARY = Path(__file__).parents[1] / "_C_cpu.so"
CUDA_LIBRARY = Path(__file__).parents[1] / "_C_cuda.so"

_provider = dict.fromkeys(DEVICES, REFERENCE)  # what serves the ops that have a kernel on this device
_reason = dict.fromkeys(DEVICES, "")  # why nothing better does
_warned: set[str] = set()


def load() -> None:
    """Load the compiled kernels, once, at import of :mod:`wilson.ops`."""
    _load_cpu()
    _load_cuda()


def build_info() -> dict[str, Any] | None:
    """What was built, or None for an install without compiled kernels."""
    if _provider["CPU"] == REFERENCE:
        return None
    tell = ctypes.CDLL(str(CPU_LIBRARY)).wilson_build_info
    tell.restype = ctypes.c_char_p
    return dict(json.loads(tell()))


def _installed_without_kernels() -> bool:
    """Whether this is a WILSON_BUILD=none install: a pure wheel, whatever an earlier build left in the source tree."""
    wheels = (found.read_text("WHEEL") for found in importlib.metadata.distributions(name="wilson-seg"))
    return "Root-Is-Purelib: true" in next(filter(None, wheels), "")


def _load_cpu() -> None:
    if _installed_without_kernels():
        _reason["CPU"] = "installed with WILSON_BUILD=none"
    elif not CPU_LIBRARY.exists():
        _reason["CPU"] = "the CPU library was not built"
    else:
        try:
            torch.ops.load_library(str(CPU_LIBRARY))
        except OSError as error:
            _reason["CPU"] = f"the CPU library could not be loaded: {error}"
        else:
            _provider["CPU"], _reason["CPU"] = "C++", "no C++ kernel yet"


def _load_cuda() -> None:
    choice = os.environ.get("WILSON_CUDA_PROVIDER", "")
    if choice not in ("", "cuda", "triton", REFERENCE):
        raise ValueError(f"WILSON_CUDA_PROVIDER must be cuda, triton or reference, got {choice!r}")
    if choice == REFERENCE:
        _reason["CUDA"] = "WILSON_CUDA_PROVIDER=reference"
        return
    if not choice and torch.cuda.device_count() == 0:  # asks NVML, where is_available() would initialise CUDA
        _reason["CUDA"] = "no CUDA device"
        return
    if choice != "triton":
        why_not = _load_cuda_library()
        if not why_not:
            _provider["CUDA"], _reason["CUDA"] = "CUDA", "no CUDA kernel yet"
            return
        if choice == "cuda":
            raise ImportError(f"WILSON_CUDA_PROVIDER=cuda, but {why_not}")
    why_not = _register_triton()
    _provider["CUDA"] = REFERENCE if why_not else "Triton"
    _reason["CUDA"] = why_not or "no Triton kernel yet"


def _load_cuda_library() -> str:
    """Register the kernels of `wilson._C_cuda`; returns why it cannot serve, or nothing."""
    if _installed_without_kernels():
        return "the CUDA library was not built: installed with WILSON_BUILD=none"
    info = build_info()
    if info and not info["cuda_architectures"]:
        return f"the CUDA library was not built: {info['cuda']}"
    if not CUDA_LIBRARY.exists():
        return "the CUDA library was not built"
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    oldest = min(_architectures(CUDA_LIBRARY), default=0)
    newest = max(_capabilities(), default=oldest)  # which is device 0, unless CUDA_DEVICE_ORDER says otherwise
    if newest < oldest:
        return f"the device is sm_{newest}, the CUDA library was built for sm_{oldest} and newer"
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
    except OSError as error:
        return f"the CUDA library could not be loaded: {error}"
    return ""


def _architectures(library: Path) -> list[int]:
    """What a CUDA library was built for, 90 for sm_90: it says so itself, as it serves a Python without `wilson._C`."""
    found = re.search(rb"wilson CUDA architectures: ([^\0]*)", library.read_bytes())
    return [int(number) for number in re.findall(rb"\d+", found[1])] if found else []


def _capabilities() -> list[int]:
    """Of the GPUs of this machine, 90 for 9.0, as NVML tells: torch would initialise CUDA. Empty if it cannot tell."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if nvml.nvmlInit_v2() != 0:
        return []
    found, count = [], ctypes.c_uint()
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
    for i in range(count.value):
        device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
        if nvml.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(device)) == 0:
            nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor))
            found.append(10 * major.value + minor.value)
    nvml.nvmlShutdown()
    return found


def _register_triton() -> str:
    """Register the launchers of :mod:`wilson.kernels`; returns why they cannot serve, or nothing."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    for op in OPS.values():
        # relative, as the package has another name on a hub of kernels
        if importlib.util.find_spec(f"..kernels.{op.family}", __package__) is None:
            continue
        launchers = importlib.import_module(f"..kernels.{op.family}", __package__)
        for name in op.raw:
            if hasattr(launchers, name):
                torch.library.register_kernel(f"wilson::{name}", "cuda", getattr(launchers, name))
    return ""


def has_kernel(op: str, device: str) -> bool:
    """Whether a kernel of our own serves `wilson::op` on a dispatch key (the reference is registered for all keys)."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"wilson::{op}", device)


def provider(op: str, device: str) -> tuple[str, str]:
    """The provider of an op on "CPU" or "CUDA", and why a better one is missing (empty if none is)."""
    if _provider[device] != REFERENCE and has_kernel(op, device):
        return _provider[device], ""
    return REFERENCE, _reason[device]


def providers() -> None:
    """Print which provider serves each op on each device, and why a better one is missing."""
    width = max(len(op) for op in OPS)
    print(f"{'op':{width}}  " + "  ".join(f"{device:10}" for device in DEVICES))
    missing: dict[str, None] = {}
    for op in OPS:
        served = [provider(op, device) for device in DEVICES]
        print(f"{op:{width}}  " + "  ".join(f"{name:10}" for name, _ in served))
        missing.update({f"{device}: {why}": None for device, (_, why) in zip(DEVICES, served, strict=True) if why})
    for line in missing:
        print(f"reference on {line}")
    info = build_info()
    if info:
        print("build: " + ", ".join(f"{key} {value}" for key, value in info.items()))


def note_reference(op: str, tensor: Tensor) -> None:
    """Warn once per op when a CUDA tensor lands on the reference."""
    if tensor.is_cuda and op not in _warned:
        _warned.add(op)
        why = _reason["CUDA"] or "no kernel"
        warnings.warn(f"wilson.ops.{op} runs on the reference on this CUDA device: {why}", stacklevel=3)

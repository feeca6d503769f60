"""Loads what was built, gives each device its provider, and says why a better one is missing.

Every op is registered by its family's Python file with the reference as its body, so every device has an answer.
Compiled code plugs kernels into dispatch keys: CPU from `wilson._C`; CUDA from `wilson._C_cuda`, else from Triton.
`WILSON_CUDA_PROVIDER=cuda|triton|reference`, read once at import, chooses for CUDA.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ._registry import OPS

DEVICES = ("CPU", "CUDA")
REFERENCE = "reference"

_provider = dict.fromkeys(DEVICES, REFERENCE)  # what serves the ops that have a kernel on this device
_reason = dict.fromkeys(DEVICES, "")  # why nothing better does
_warned: set[str] = set()


def load() -> None:
    """Load the compiled kernels, once, at import of :mod:`wilson.ops`."""
    _load_cpu()
    _load_cuda()


def build_info() -> dict[str, Any] | None:
    """What was built, or None for an install without compiled kernels."""
    module = _compiled_module()
    return None if module is None else dict(module.build_info())


def _compiled_module() -> ModuleType | None:
    if _installed_without_kernels():
        _reason["CPU"] = "installed with WILSON_BUILD=none"
        return None
    try:
        return importlib.import_module("wilson._C")
    except ImportError as error:
        _reason["CPU"] = _reason["CPU"] or f"wilson._C could not be imported: {error}"
        return None


def _installed_without_kernels() -> bool:
    """Whether this is a WILSON_BUILD=none install: a pure wheel, whatever an earlier build left in the source tree."""
    wheels = (found.read_text("WHEEL") for found in importlib.metadata.distributions(name="wilson-seg"))
    return "Root-Is-Purelib: true" in next(filter(None, wheels), "")


def _load_cpu() -> None:
    if _compiled_module() is not None:
        _provider["CPU"] = "C++"
        _reason["CPU"] = "no C++ kernel yet"


def _load_cuda() -> None:
    choice = os.environ.get("WILSON_CUDA_PROVIDER", "")
    if choice not in ("", "cuda", "triton", REFERENCE):
        raise ValueError(f"WILSON_CUDA_PROVIDER must be cuda, triton or reference, got {choice!r}")
    if choice == REFERENCE:
        _reason["CUDA"] = "WILSON_CUDA_PROVIDER=reference"
        return
    if not choice and not torch.cuda.is_available():
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
    library = Path(__file__).parents[1] / "_C_cuda.so"
    info = build_info() or {}
    if not info.get("cuda_architectures") or not library.exists():
        return f"the CUDA library was not built: {info.get('cuda', 'no compiled kernels')}"
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    oldest = min(int(str(a).rstrip("af+PTX")) for a in info["cuda_architectures"])
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor < oldest:
            return f"the device is sm_{major}{minor}, the CUDA library was built for sm_{oldest} and newer"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"the CUDA library could not be loaded: {error}"
    return ""


def _register_triton() -> str:
    """Register the launchers of :mod:`wilson.kernels`; returns why they cannot serve, or nothing."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    for op in OPS.values():
        if importlib.util.find_spec(f"wilson.kernels.{op.family}") is None:
            continue
        launchers = importlib.import_module(f"wilson.kernels.{op.family}")
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

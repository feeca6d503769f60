"""A Triton driver without a GPU: `kernel[grid](cpu tensors)` compiles for a real architecture and runs the PTX here.

`with use(90), kernel.session():` launches within run here; then everything is as it was.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import triton.compiler.compiler
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from . import ptx
from .kernel import Kernel, current
from .limits import EVERYWHERE_SHARED_BYTES

_FORMAT = {"fp32": "<f", "fp64": "<d", "f32": "<f", "f64": "<d"}


class _Utils:
    """What Triton asks of a device."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        most = EVERYWHERE_SHARED_BYTES
        return {"max_shared_mem": most, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[None, int, int, int, int]:
        return None, 1, 0, 0, 1024  # no module that would be unloaded; function, registers, spills, most threads


class _Launcher:
    """Launches one compiled kernel."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.signature = list(source.signature.values())
        self.threads = 32 * metadata.num_warps
        self.shared = metadata.shared
        self.kernel: Kernel | None = None

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *hooks_and_arguments: Any) -> None:
        arguments = hooks_and_arguments[4:]  # after the packed and launch metadata and two hooks
        session = current()
        if session is None:
            raise RuntimeError("launch emulated kernels within emulator.kernel.session()")
        assert self.kernel is not None
        packed = []
        for type_, value in _flat(self.signature, arguments):
            if type_ != "constexpr":
                if isinstance(value, Tensor) and not session.memory.knows(value):
                    session.memory.add(value)
                packed.append(_pack(type_, value))
        packed += [b""] * (len(self.kernel.parameters) - len(packed))  # scratch memory, which these kernels do not use
        self.kernel.launch(session, (x, y, z), (self.threads,), packed, self.shared, asked=self.shared)


def _flat(types: Iterable[Any], values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Types and values of arguments, where a tuple of arguments has a tuple of types."""
    for type_, value in zip(types, values, strict=True):
        if isinstance(type_, tuple):
            yield from _flat(type_, value)
        else:
            yield type_, value


def _pack(type_: str, value: Any) -> bytes:
    if type_.startswith("*"):
        return struct.pack("<Q", 0 if value is None else value.data_ptr())
    if type_ in _FORMAT:
        return struct.pack(_FORMAT[type_], value)
    return (int(value) & (1 << 64) - 1).to_bytes(8, "little")


class EmulatedDriver(DriverBase):
    """A GPU of compute capability `arch` / 10, whose memory is that of the CPU."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.utils = _Utils()
        self.launcher_cls = _Launcher

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch  # kernels are kept by device: another architecture, another compilation

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.arch, 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, type_: str) -> str:
        return type_

    def get_benchmarker(self) -> Callable[..., Any]:
        raise NotImplementedError("the emulator says nothing about speed")

    def get_empty_cache_for_benchmark(self) -> None:
        return None

    def clear_cache(self, cache: Any) -> None:
        pass


@contextlib.contextmanager
def use(arch: int) -> Iterator[None]:
    """Within, Triton kernels run on the emulator."""
    compiled = triton.compiler.compiler.CompiledKernel
    before = driver._active, knobs.runtime.add_stages_inspection_hook, compiled._init_handles
    driver.set_active(EmulatedDriver(arch))
    knobs.runtime.add_stages_inspection_hook = _stop_at_ptx
    compiled._init_handles = functools.partialmethod(_init_handles, before[2])
    try:
        yield
    finally:
        driver._active, knobs.runtime.add_stages_inspection_hook, compiled._init_handles = before


def _stop_at_ptx(*compilation: Any) -> tuple[str, str] | None:
    """Triton's hook: what the compilation is called in its cache; with arguments, its stages may be changed.

    Machine code is made from PTX by ptxas, which takes as long as all before it, and is not run here.
    """
    if not compilation:
        return "emulator", "emulator"
    _, stages, *_ = compilation
    stages["cubin"] = lambda source, metadata: b"not made"
    return None


def _init_handles(compiled: Any, before: Callable[[Any], None]) -> None:
    """Triton's own, then the kernel from the PTX that Triton kept beside the binary."""
    before(compiled)
    if compiled._run.kernel is None:
        compiled._run.kernel = Kernel(ptx.parse(compiled.asm["ptx"]), compiled.name)

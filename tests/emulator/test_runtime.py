"""The stand-in for the CUDA runtime: what it asks of each launch beyond the limits of the hardware."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import pytest

from tests.emulator import check, kernel
from tests.emulator.limits import FREE_SHARED_BYTES

MAX_DYNAMIC_SHARED_MEMORY_SIZE = 8  # cudaFuncAttributeMaxDynamicSharedMemorySize


class Size(ctypes.Structure):
    _fields_ = tuple((side, ctypes.c_uint) for side in "xyz")


class Host:
    """Does by hand what a launcher of a family does, with one of its kernels."""

    def __init__(self, family: str) -> None:
        from tests.emulator import cuda_ops

        self._library = cuda_ops.library(family)
        self._runtime = self._library._runtime
        self._handle = ctypes.create_string_buffer(1)
        name = next(f.name for f in self._library._module.functions.values() if f.is_kernel)
        register = getattr(self._runtime, "__cudaRegisterFunction")  # an attribute's name would be mangled
        register(None, self._handle, None, name.encode(), 0, None, None, None, None, None)
        self.stream = ctypes.c_void_p()
        self._runtime.aoti_torch_get_current_cuda_stream(0, ctypes.byref(self.stream))

    def launch(self, stream: ctypes.c_void_p | None = None, shared: int = 0) -> str:
        """What is wrong with the launch."""
        self._library._error = None
        sizes, stream = (Size(1, 1, 1), Size(32, 1, 1)), self.stream if stream is None else stream
        self._runtime.cudaLaunchKernel(self._handle, *sizes, None, ctypes.c_size_t(shared), stream)
        return str(self._library._error or "")

    def ask_for(self, shared: int) -> None:
        self._runtime.cudaFuncSetAttribute(self._handle, MAX_DYNAMIC_SHARED_MEMORY_SIZE, shared)

    def look_for_errors(self) -> None:
        self._runtime.cudaGetLastError()

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """As torch's guard, which does not give back a handle that is null."""
        handle = ctypes.c_void_p()
        self._runtime.aoti_torch_create_device_guard(0, ctypes.byref(handle))
        yield
        if handle:
            self._runtime.aoti_torch_delete_device_guard(handle)


@pytest.fixture
def host() -> Iterator[Host]:
    check.need("cuda", "soft_margin_loss")
    host = Host("soft_margin")
    with kernel.launches_only():
        yield host
    host._runtime.emulator_checked()


def test_the_device_is_guarded(host):
    for _ in range(2):
        assert "guard" in host.launch()
        host.look_for_errors()
        with host.guard(), host.guard():
            assert not host.launch()
            host.look_for_errors()


def test_the_stream_is_the_current_one(host):
    assert host.stream.value
    with host.guard():
        assert "stream" in host.launch(ctypes.c_void_p())


def test_somebody_looks_for_errors(host):
    with host.guard():
        assert not host.launch()
        assert "error after the launch" in host.launch()


def test_shared_memory_is_asked_for_before_each_launch(host):
    shared = FREE_SHARED_BYTES + 16
    with host.guard():
        host.ask_for(shared)
        assert not host.launch(shared=shared)
        host.look_for_errors()
        assert "dynamic shared memory" in host.launch(shared=shared)

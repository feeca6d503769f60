"""What the benchmarks share: calls on the device, peak memory, and how often to repeat."""

from __future__ import annotations

import ctypes
import functools
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support import cases

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The same tensors on the device, at the same strides."""
    return tuple(cases.moved(t, DEVICE) for t in tensors)


def finish() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def finished(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call for a clock on the host: it leaves nothing running on the device."""
    if DEVICE.type == "cpu":
        return call

    def call_and_wait() -> Any:
        result = call()
        finish()
        return result

    return call_and_wait


def forward_and_backward(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict, grad: bool) -> Callable:
    """A call without arguments; on a GPU it returns while the device still works, see :func:`finished`."""
    if not grad:
        return functools.partial(function, *args, **kwargs)
    first = args[0].detach().requires_grad_()
    weights = torch.ones_like(function(first, *args[1:], **kwargs))

    def call() -> Any:
        return torch.autograd.grad(function(first, *args[1:], **kwargs), first, weights)[0]

    return call


def rounds_for(call: Callable[[], Any], seconds: float = 1.0) -> int:
    """Rounds that take about so long, 3 to 40: a few for calls of seconds."""
    call()
    start = time.perf_counter()
    call()
    return max(3, min(40, round(seconds / (time.perf_counter() - start))))


def peak_extra_bytes(call: Callable[[], Any]) -> int:
    """The most memory that a call holds beyond what was there before it, its results included.

    On the CPU that is the resident memory of the process, whoever allocates it: freed memory is first given back to the
    system, so that a call cannot hide in it.
    """
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _resident("VmRSS")
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


def fastest(call: Callable[[], Any], seconds: float = 0.3) -> float:
    """The shortest of some calls: what the call costs when nothing disturbs it."""
    times = []
    for _ in range(rounds_for(call, seconds)):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)

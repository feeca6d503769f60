"""What each op has to do at least, and how fast this machine can do it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.support import cases


def work(op: str, shape: cases.Shape) -> cases.Work:
    """The least that an op does at a shape; of several, joined by "+", their sum."""
    first, *others = (cases.WORK[part](shape) for part in op.split("+"))
    return sum(others, first)


@dataclass(frozen=True)
class Machine:
    """Rates of this machine's CPU on the threads in use, as PyTorch's own kernels reach them."""

    exps: float  # per second: torch.exp on data in the cache
    multiply_adds: float  # per second: a matrix product
    bytes: float  # per second: a copy of 12 MB, read and written

    def seconds(self, work: cases.Work) -> dict[str, float]:
        return {
            "exp": work.exps / self.exps,
            "arithmetic": work.multiply_adds / self.multiply_adds,
            "memory": work.bytes / self.bytes,
        }


def measure_machine() -> Machine:
    cached, large = torch.full((1 << 17,), -1.0), torch.zeros(12 * 10**6 // 4)
    square = torch.ones(768, 768)
    to_cached, to_large, to_square = torch.empty_like(cached), torch.empty_like(large), torch.empty_like(square)
    return Machine(
        exps=cached.numel() / _fastest(lambda: torch.exp(cached, out=to_cached)),
        multiply_adds=768**3 / _fastest(lambda: torch.mm(square, square, out=to_square)),
        bytes=2 * 4 * large.numel() / _fastest(lambda: to_large.copy_(large)),
    )


def _fastest(call: Callable[[], object], rounds: int = 200) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)

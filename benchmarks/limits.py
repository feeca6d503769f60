"""What each op has to do at least, and how fast this machine can do it."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.support import cases

SOURCE = Path(__file__).with_name("limits.cpp")
HEADERS = SOURCE.parents[1] / "csrc"


def work(op: str, shape: cases.Shape) -> cases.Work:
    """The least that an op does at a shape; of several, joined by "+", their sum."""
    first, *others = (cases.WORK[part](shape) for part in op.split("+"))
    return sum(others, first)


@dataclass(frozen=True)
class Machine:
    """Rates of this machine's CPU on the threads in use, for maps of one size.

    Maps are read where the calls before left them, in a cache if they fit. A result is stored in memory that PyTorch
    has just handed out, as every op's is; where the system gives it new pages, their faults cost more than the store.
    """

    exps: float  # per second: the kernels' exponential, on data in the cache
    multiply_adds: float  # per second: a matrix product of PyTorch
    reads: float  # bytes per second: a sum
    writes: float  # bytes per second: a constant into a new tensor

    def seconds(self, work: cases.Work) -> dict[str, float]:
        return {
            "exp": work.exps / self.exps,
            "arithmetic": work.multiply_adds / self.multiply_adds,
            "memory": work.reads / self.reads + work.writes / self.writes,
        }


def measure_machine(shape: cases.Shape) -> Machine:
    """The rates for maps of a shape."""
    loops = _compiled()
    loops.use_threads(torch.get_num_threads())
    cached, scores, square = torch.full((1 << 17,), -1.0), torch.zeros(shape.scores), torch.ones(768, 768)
    to_square = torch.empty_like(square)

    def over(loop: str, values: Tensor) -> None:
        getattr(loops, loop)(ctypes.c_void_p(values.data_ptr()), ctypes.c_int64(values.numel()))

    return Machine(
        exps=cached.numel() / _fastest(lambda: over("exponentials", cached)),
        multiply_adds=768**3 / _fastest(lambda: torch.mm(square, square, out=to_square)),
        reads=4 * scores.numel() / _fastest(lambda: over("read", scores)),
        writes=4 * scores.numel() / _fastest(lambda: over("store", torch.empty_like(scores))),
    )


@functools.cache
def _compiled() -> ctypes.CDLL:
    """The loops of limits.cpp, compiled for this machine."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "limits.so"
        options = ["-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17", f"-I{HEADERS}"]
        subprocess.run(["c++", *options, str(SOURCE), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def _fastest(call: Callable[[], object], rounds: int = 200) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)

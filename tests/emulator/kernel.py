"""A kernel, its launches, what they moved, and what they are refused for."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import enum
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import build, limits, ptx
from .decode import Decoder
from .memory import Memory
from .program import Program
from .units import Unit

MOST_FAULTS = 32
# Instructions of a launch (each for a warp) after which a kernel is taken to run for ever: some minutes
ENDLESS = 1 << 32
_ATOMIC_SUM = re.compile(r"(atom|red)\..*\badd\b.*\.b?f(16|32|64)(x2)?$")


class Fault(enum.IntEnum):
    """What a kernel may do wrong, in the order of machine/machine.h."""

    OUT_OF_BOUNDS = 0
    MISALIGNED = 1
    UNINITIALISED = 2
    READ_ONLY = 3
    SHARED_OUT_OF_BOUNDS = 4
    SHARED_MISALIGNED = 5
    SHARED_UNINITIALISED = 6
    BLOCK_RACE = 7
    SHARED_RACE = 8
    DIVERGENT = 9
    EXITED = 10
    DEADLOCK = 11
    ENDLESS = 12
    TRAP = 13


TEXT = {
    Fault.OUT_OF_BOUNDS: "access outside of every tensor",
    Fault.MISALIGNED: "misaligned access",
    Fault.UNINITIALISED: "read of memory that nothing has written",
    Fault.READ_ONLY: "store into memory that the kernel may only read",
    Fault.SHARED_OUT_OF_BOUNDS: "access outside of shared memory",
    Fault.SHARED_MISALIGNED: "misaligned access to shared memory",
    Fault.SHARED_UNINITIALISED: "read of shared memory that the block has not written",
    Fault.BLOCK_RACE: "race: another block stores into these bytes, or loads them, in the same launch",
    Fault.SHARED_RACE: "race: two warps touch these bytes of shared memory with no barrier in between",
    Fault.DIVERGENT: "lanes of the warp are elsewhere: they never come to this instruction together",
    Fault.EXITED: "threads that should take part have left the kernel",
    Fault.DEADLOCK: "the barrier is never reached by all its threads",
    Fault.ENDLESS: "the kernel does not end",
    Fault.TRAP: "the kernel stopped itself",
}


class _Fault(ctypes.Structure):
    _fields_ = (
        ("wrong", ctypes.c_int32),
        ("line", ctypes.c_int32),
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
    )


class _Counts(ctypes.Structure):
    _fields_ = (
        ("by_unit", ctypes.c_uint64 * len(Unit)),
        *(
            (name, ctypes.c_uint64)
            for name in (
                "instructions", "loads", "load_bytes", "stores", "store_bytes", "wide_bytes", "atomics", "barriers",
                "shuffles",
            )
        ),
    )  # fmt: skip


class KernelError(Exception):
    """Faults of a launch, each with its line of PTX. `faults` are their kinds."""

    def __init__(self, name: str, faults: Sequence[_Fault], lines: Sequence[str]) -> None:
        self.faults = [Fault(f.wrong) for f in faults]
        said = [
            f"  {TEXT[Fault(f.wrong)]}: address {f.address:#x}, block {tuple(f.block)}, thread {f.thread},"
            f" PTX line {f.line}: {lines[f.line - 1].strip() if 0 < f.line <= len(lines) else ''}"
            for f in faults
        ]
        super().__init__("\n".join([f"{name} is faulty", *said]))


@dataclass(frozen=True)
class Launch:
    """What one launch did. Bytes are of global memory: those asked for, and distinct ones.

    Lanes of a warp that name the same address in one instruction ask once, as the hardware serves them.
    """

    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    instructions: int  # of the emulator, each for a warp
    load_bytes: int
    store_bytes: int
    distinct_loaded: int
    distinct_stored: int
    atomics: int
    barriers: int
    shared: int = 0  # bytes of a block, declared and dynamic
    wide: int = 0  # of the bytes asked for, those that a lane moves 8 or more at a time
    unordered: bool = False  # the kernel adds numbers with a point atomically: their order changes the sum
    executed: tuple[int, ...] = ()  # instructions of PTX by unit, each for a warp

    @property
    def requested(self) -> int:
        return self.load_bytes + self.store_bytes

    @property
    def distinct(self) -> int:
        return self.distinct_loaded + self.distinct_stored


@dataclass
class Session:
    """What kernels run in: memory, the order of blocks and warps, and the launches so far."""

    memory: Memory
    seed: int = 0  # other than 0: blocks and warps in a shuffled order
    launches: list[Launch] = field(default_factory=list)
    runs: bool = True  # else it is only checked what launches ask for


_session: contextvars.ContextVar[Session | None] = contextvars.ContextVar("session", default=None)


@contextlib.contextmanager
def session(seed: int = 0) -> Iterator[Session]:
    """Kernels that are launched within see the tensors that are allocated within or handed over."""
    with Memory() as memory:
        token = _session.set(current := Session(memory, seed))
        try:
            yield current
        finally:
            _session.reset(token)


@contextlib.contextmanager
def launches_only() -> Iterator[Session]:
    """Kernels that are launched within are not run: each launch is checked against the limits of the hardware."""
    token = _session.set(session := Session(Memory(), runs=False))
    try:
        yield session
    finally:
        _session.reset(token)


def current() -> Session | None:
    return _session.get()


class Kernel:
    """A kernel of a PTX module, ready to be launched."""

    def __init__(self, module: ptx.Module, name: str | None = None) -> None:
        function = module.kernel(name)
        self.name, self._module, self._function = function.name, module, function
        self._decoder = Decoder(module, function)
        self.parameters = self._decoder.parameters  # (offset, bytes) of each
        self._parameter_bytes, self._shared_bytes = self._decoder.parameter_bytes, self._decoder.shared_bytes
        self._variables = {v.name: _variable(v) for v in module.variables if v.space in ("global", "const") and v.size}
        self._unordered = any(_ATOMIC_SUM.match(statement.op) for statement in function.statements)

    @functools.cached_property
    def _program(self) -> Program:
        addresses = {name: array.ctypes.data for name, array in self._variables.items()}
        return self._decoder.program(build.machine(), addresses)

    def launch(
        self,
        session: Session,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[bytes],
        shared: int = 0,
        asked: int | None = None,
    ) -> Launch:
        """Run a grid.

        Args:
            session: what it runs in.
            grid, block: up to three numbers each.
            arguments: the bytes of each parameter.
            shared: dynamic shared memory of a block, in bytes.
            asked: such bytes that the host asked leave for.

        Raises:
            LaunchError: a GPU would refuse the launch.
            KernelError: anything that the kernel did was wrong.
        """
        grid, block = ((*size, 1, 1)[:3] for size in (grid, block))
        declared = self._shared_bytes
        limits.check(self._module, self._function, grid, block, (declared, shared), asked, self._parameter_bytes)
        if not session.runs:
            launch = Launch(
                self.name, tuple(grid), tuple(block), *(0,) * 7, declared + shared, unordered=self._unordered
            )
            session.launches.append(launch)
            return launch
        if len(arguments) != len(self.parameters):
            raise ValueError(f"{self.name} takes {len(self.parameters)} arguments, got {len(arguments)}")
        for array in self._variables.values():
            session.memory.add_array(array, writable=True)
        packed = bytearray(max(self._parameter_bytes, 1))
        for (offset, size), value in zip(self.parameters, arguments, strict=True):
            packed[offset : offset + size] = value[:size].ljust(size, b"\0")
        buffers, count = session.memory.begin_launch()
        counts, faults = _Counts(), (_Fault * MOST_FAULTS)()
        size3 = ctypes.c_uint32 * 3
        found = build.machine().ptx_launch(
            self._program.handle, size3(*grid), size3(*block), bytes(packed), ctypes.c_uint64(self._parameter_bytes),
            ctypes.c_uint64(self._shared_bytes + shared), buffers, count, ctypes.c_uint64(session.seed),
            ctypes.c_uint64(ENDLESS), ctypes.byref(counts), faults, MOST_FAULTS,
        )  # fmt: skip
        if found:
            raise KernelError(self.name, faults[:found], self._module.lines)
        loaded, stored = session.memory.touched()
        launch = Launch(
            self.name, tuple(grid), tuple(block), counts.instructions, counts.load_bytes, counts.store_bytes,
            loaded, stored, counts.atomics, counts.barriers, declared + shared, counts.wide_bytes,
            self._unordered, tuple(counts.by_unit[:Unit.NONE]),
        )  # fmt: skip
        session.launches.append(launch)
        return launch


def _variable(v: ptx.Variable) -> np.ndarray:
    array = np.zeros(v.size, np.uint8)
    array[: len(v.initial)] = v.initial
    return array

"""What a launch may ask of a GPU; the hardware refuses more, where the rest of the emulator would grant it.

What a kernel declares counts: its shared variables, `.maxntid` and its like. Registers are those that the compiler may
give to a thread: as many as leave room for all threads of the largest block that the kernel declares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from . import ptx

KIB = 1024
FREE_SHARED_BYTES = 48 * KIB  # of a block, declared and dynamic; for more the host has to ask
EVERYWHERE_SHARED_BYTES = 99 * KIB  # what it may ask for on every GPU since sm_80
MOST_SHARED_BYTES = {80: 163 * KIB, 87: 163 * KIB, 90: 227 * KIB, 100: 227 * KIB}  # and on these
MOST_THREADS = 1024
MOST_BLOCK = (1024, 1024, 64)
MOST_GRID = (2**31 - 1, 2**16 - 1, 2**16 - 1)
REGISTERS = 65536  # of a block
MOST_REGISTERS = 256  # of a thread; a warp gets them in steps of 8 a thread
MOST_BLOCKS_OF_A_CLUSTER = 8
MOST_PARAMETER_BYTES = 4096  # what every version of CUDA takes


class LaunchError(Exception):
    """A launch that a GPU refuses, or that it does not do as the caller thinks."""


def check(
    module: ptx.Module,
    kernel: ptx.Function,
    grid: Sequence[int],
    block: Sequence[int],
    shared: tuple[int, int],
    asked: int | None,
    parameter_bytes: int,
) -> None:
    """Raise LaunchError for what a GPU does not take.

    Args:
        module: that the kernel is of; its target is the architecture.
        kernel: that is launched.
        grid, block: three numbers each.
        shared: bytes that the kernel declares, and those of the launch.
        asked: bytes of the launch that the host asked leave for; None if it did not ask.
        parameter_bytes: of all arguments.
    """
    for wrong in (
        _threads(kernel, block), _blocks(kernel, grid), _registers(kernel, math.prod(block)),
        _shared(module.architecture, *shared, asked),
        f"{parameter_bytes} bytes of arguments" if parameter_bytes > MOST_PARAMETER_BYTES else "",
    ):  # fmt: skip
        if wrong:
            raise LaunchError(f"{kernel.name}, grid {tuple(grid)}, block {tuple(block)}: {wrong}")


def _threads(kernel: ptx.Function, block: Sequence[int]) -> str:
    threads = math.prod(block)
    if threads == 0 or threads > MOST_THREADS or any(n > most for n, most in zip(block, MOST_BLOCK, strict=True)):
        return f"no block has so many threads: at most {MOST_BLOCK}, {MOST_THREADS} in all"
    most, exact = kernel.limits.get("maxntid"), kernel.limits.get("reqntid")
    if most and threads > math.prod(most):
        return f"the kernel was compiled for at most {math.prod(most)} threads"
    if exact and tuple(block) != (*exact, 1, 1)[:3]:
        return f"the kernel was compiled for blocks of {exact} threads"
    return ""


def _blocks(kernel: ptx.Function, grid: Sequence[int]) -> str:
    if math.prod(grid) == 0 or any(n > most for n, most in zip(grid, MOST_GRID, strict=True)):
        return f"no grid has so many blocks: at most {MOST_GRID}"
    cluster = (*kernel.limits.get("reqnctapercluster", ()), 1, 1, 1)[:3]
    if math.prod(cluster) > MOST_BLOCKS_OF_A_CLUSTER:
        return f"a cluster has at most {MOST_BLOCKS_OF_A_CLUSTER} blocks, not {cluster}"
    if any(n % side for n, side in zip(grid, cluster, strict=True)):
        return f"the grid cannot be divided into clusters of {cluster}"
    return ""


def _registers(kernel: ptx.Function, threads: int) -> str:
    bound = kernel.limits.get("reqntid") or kernel.limits.get("maxntid")
    each = MOST_REGISTERS
    if bound:  # the compiler leaves room for as many blocks of them as it is told
        blocks = math.prod(kernel.limits.get("minnctapersm", (1,)))
        each = min(each, REGISTERS // (blocks * math.prod(bound)) // 8 * 8)
    (said,) = kernel.limits.get("maxnreg", (each,))
    each = min(each, -(-said // 8) * 8)
    warps = -(-threads // 32)
    if warps * 32 * each > REGISTERS:
        return f"{each} registers a thread may be too many for {threads}; give the kernel launch bounds"
    return ""


def _shared(architecture: int, declared: int, dynamic: int, asked: int | None) -> str:
    most = MOST_SHARED_BYTES.get(architecture, EVERYWHERE_SHARED_BYTES)
    if declared > FREE_SHARED_BYTES:
        return f"it declares {declared} bytes of shared memory, more than {FREE_SHARED_BYTES}"
    if declared + max(dynamic, asked or 0) > most:
        return f"{declared} + {max(dynamic, asked or 0)} bytes of shared memory are more than {most}"
    free = FREE_SHARED_BYTES - declared
    if dynamic > (free if asked is None else asked):
        what = f"{free} that are free" if asked is None else f"{asked} that were asked for"
        return f"{dynamic} bytes of dynamic shared memory beside {declared} declared ones, more than the {what}"
    return ""

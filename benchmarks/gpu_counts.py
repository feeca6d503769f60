"""What can be counted of the GPU kernels without a GPU: registers, launches, bytes; and a roofline estimate."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import bench_ops, limits

REGISTERS_PER_SM, MAX_WARPS = 65536, 64  # sm_80, sm_90 and sm_100


class Gpu(NamedTuple):
    """Published peaks; exponentials are 16 per clock and multiprocessor (CUDA C++ Programming Guide)."""

    name: str
    bytes: float  # per second
    exps: float  # per second


GPUS = (
    Gpu("A100 (80 GB, SXM)", 2.039e12, 16 * 108 * 1.41e9),
    Gpu("H100 (SXM)", 3.35e12, 16 * 132 * 1.83e9),
)


def roofline(grid: str) -> list[list[Any]]:
    """The least time of each op on each GPU: bytes over bandwidth or exponentials over their rate. An estimate."""
    rows = []
    for op in bench_ops.NAMES:
        shape = (bench_ops.BASE_GRIDS if op.startswith("upsampled") else bench_ops.GRIDS)[grid]
        work = limits.work(op, shape)
        micro = [1e6 * max(work.bytes / gpu.bytes, work.exps / gpu.exps) for gpu in GPUS]
        rows.append([f"`{op}`", f"{work.bytes / 1e6:.1f}", f"{work.exps / 1e6:.1f}", *(f"{m:.1f}" for m in micro)])
    return rows


def cuda_registers(library: Path) -> tuple[list[str], list[list[Any]]]:
    """The architectures in the library, and the most registers that an instance of each kernel takes on them."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command: list[str | Path] = [tool, "--dump-resource-usage", library]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    most: dict[tuple[str, str], tuple[int, int]] = {}
    arch = kernel = ""
    for line in text.splitlines():
        if found := re.search(r"arch = (sm_\d+)", line):
            arch = found[1]
        # a kernel of one family stands in the nameless namespace of its file, one that they share does not
        if found := re.search(r"_ZN6wilson(?:\w+?_\d+_([a-z_]+?)_cu_\w*?)?\d+([a-z_]+_kernel)", line):
            kernel = f"{found[1] or 'common'}: {found[2]}"
        if found := re.search(r"REG:(\d+) STACK:(\d+)", line):
            registers, stack = most.get((kernel, arch), (0, 0))
            most[kernel, arch] = max(registers, int(found[1])), max(stack, int(found[2]))
    archs = sorted({arch for _, arch in most}, key=lambda name: int(name[3:]))
    kernels = sorted({kernel for kernel, _ in most})
    return archs, [[k, *(_registers(*most[k, a]) if (k, a) in most else "" for a in archs)] for k in kernels]


def _registers(registers: int, stack: int) -> str:
    """Registers of a thread, the share of warps that they let a multiprocessor hold, and the stack if there is any."""
    warps = min(MAX_WARPS, REGISTERS_PER_SM // (32 * 8 * -(-registers // 8)))
    return f"{registers} ({100 * warps // MAX_WARPS} %)" + (f", stack {stack} B" if stack else "")


def traffic(provider: str) -> list[list[Any]]:
    """Launches and bytes of every call, counted by the emulator of the tests."""
    from tests.emulator import check
    from tests.emulator import traffic as counted

    if check.missing(provider):
        return []
    keys = ("launches", "least bytes", "distinct bytes", "distinct / least", "requested bytes", "reuse")
    return [[f"`{row['op']}`", *(row[key] for key in keys)] for row in counted.table(counted.calls(provider))]

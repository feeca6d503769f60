"""What can be counted of the GPU kernels without a GPU: registers, launches, bytes; and a roofline estimate."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import bench_ops, limits

# Instructions that were counted before kernels changed, a file for each provider
COUNTS = Path(__file__).parents[1] / "docs" / "gpu" / "counts"
FORMATS = {"fp32 NCHW": (torch.float32, "contiguous"), "bf16 NHWC": (torch.bfloat16, "channels_last")}
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


def calls(provider: str) -> dict[str, list[Any]]:
    """Every call of the provider's ops in each format, executed by the emulator of the tests."""
    from tests.emulator import check, traffic

    if check.missing(provider):
        return {}
    return {name: traffic.calls(provider, *how) for name, how in FORMATS.items()}


def traffic(measured: dict[str, list[Any]]) -> tuple[list[str], list[list[Any]]]:
    """Launches and bytes of every call."""
    from tests.emulator import traffic as counted

    keys = ["launches", "least bytes", "distinct bytes", "distinct / least", "requested bytes", "reuse"]
    rows = [
        [f"`{row['op']}`", name, *(row[key] for key in keys), f"{row['wide']:.0%}"]
        for name, found in measured.items()
        for row in counted.table(found)
    ]
    return ["call", "format", *keys, "8 bytes at a time"], _by_call(rows)


def instructions(provider: str, measured: dict[str, list[Any]]) -> tuple[list[str], list[list[Any]]]:
    """Instructions of every call for each element, by unit, beside all of those counted before."""
    from tests.emulator import traffic as counted

    file = COUNTS / f"{provider}.json"
    earlier: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"commit": "", "instructions": []}
    before = {(row["op"], row["format"]): row["all"] for row in earlier["instructions"]}
    keys = ["integer", "float", "special", "memory", "control", "all"]
    rows = [
        [f"`{row['op']}`", name, *(row[key] for key in keys), before.get((row["op"], name), "")]
        for name, found in measured.items()
        for row in counted.instructions(found)
    ]
    return ["call", "format", *keys, f"all, at {earlier['commit'] or 'first'}"], _by_call(rows)


def _by_call(rows: list[list[Any]]) -> list[list[Any]]:
    """The formats of a call below each other."""
    order = list(dict.fromkeys(row[0] for row in rows))
    return sorted(rows, key=lambda row: order.index(row[0]))

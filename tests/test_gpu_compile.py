"""The GPU kernels compiled ahead of time, with no GPU: they compile, do not spill, and move 16 bytes at a time."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import torch

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or importlib.util.find_spec("wilson.kernels") is None,
    reason="needs triton and an installed wilson.kernels",
)
TRITON_TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
OPTIONS = {"EPS": 1.0, "GAMMA": 3.0, "LAM": 0.01, "FOCAL": True}


def triton_pooling_kernels(classes: int, dtype: torch.dtype):
    """(kernel, pointers, constants, warps) as the launchers choose them for contiguous scores."""
    import triton.language as tl

    from wilson.kernels import pooling

    tile, run = pooling._tile(torch.empty((1, classes, 8, 8), dtype=dtype, device="meta"))
    tile = dict(tile)
    warps = tile.pop("num_warps")
    element = f"*{TRITON_TYPES[dtype]}"
    acc, to_acc = ("*fp64", tl.float64) if dtype == torch.float64 else ("*fp32", tl.float32)
    unit = {"pixel_stride": 1, "LINEAR": True, "ACC": to_acc}
    yield pooling._ngwp_focal_pool_fwd_kernel, {"scores": element, "sums": acc}, {**tile, **unit, "RUN": run}, warps
    pointers = {"grad_pooled": acc, "scores": element, "mass": acc, "score": acc, "grad_scores": element}
    grad_unit = {"grad_pixel_stride": 1, "GRAD_LINEAR": True, "grad_pooled_class_stride": 1}
    yield pooling._ngwp_focal_pool_bwd_kernel, pointers, {**tile, **unit, **grad_unit, **OPTIONS}, warps
    pointers = {"sums": acc, "pooled": acc, "mass": acc, "score": acc}
    block = {"BLOCK_C": 32, "BLOCK_R": 32, "ACC": to_acc}
    yield pooling._ngwp_focal_pool_finish_kernel, pointers, {**block, **OPTIONS}, 4


def compile_triton(kernel, target, pointers: dict, constants: dict, warps: int):
    """Pointers and strides known to be divisible by 16, as they are for maps of 16 n pixels."""
    import triton
    from triton.compiler import ASTSource

    signature = {name: pointers.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
    odd = {"C", "runs", "tiles", "width", "grad_width"}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name] != "constexpr" and name not in odd
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
    return triton.compile(source, target=target, options={"num_warps": warps})


def machine_code(compiled, folder: Path) -> tuple[dict[str, int], list[str]]:
    """What the kernel takes (registers, stack, local memory), and its memory instructions."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])

    def run(*command: str) -> str:
        return subprocess.run([*command, str(cubin)], capture_output=True, text=True, check=True).stdout

    usage = run(str(tools / "cuobjdump"), "--dump-resource-usage")
    resources = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    code = run(str(tools / "nvdisasm"), "-c")
    return resources, re.findall(r"\b(?:LDG|STG|LDL|STL)(?:\.[A-Z0-9_]+)*", code)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [21, 81, 128, 1000])
@pytest.mark.parametrize("arch", [80, 90])
def test_triton_kernels(arch, classes, dtype, tmp_path):
    from triton.backends.compiler import GPUTarget

    for kernel, *how in triton_pooling_kernels(classes, dtype):
        resources, memory = machine_code(compile_triton(kernel, GPUTarget("cuda", arch, 32), *how), tmp_path)
        print(arch, classes, dtype, kernel.fn.__name__, resources, {m: memory.count(m) for m in set(memory)})

"""The GPU kernels compiled ahead of time, with no GPU: they compile, do not spill, and move 16 bytes at a time.

The launchers run on tensors without data; what they launch is noted instead of run, and compiled as the launch asks.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.support import raw_calls

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or importlib.util.find_spec("wilson.kernels") is None,
    reason="needs triton and an installed wilson.kernels",
)
TRITON_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
}


class Launch(NamedTuple):
    kernel: Any
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list]
    options: dict[str, int]


def noted(kernel: Any, args: tuple, kwargs: dict[str, Any]) -> Launch:
    """A launch as Triton specialises it: an integer 1 or None is a constant, multiples of 16 are known as such.

    Except for arguments that a kernel asks not to be specialised.
    """
    options = {name: value for name, value in kwargs.items() if name not in kernel.arg_names}
    bound = inspect.signature(kernel.fn).bind(*args, **{k: v for k, v in kwargs.items() if k not in options}).arguments
    launch = Launch(kernel, {}, {}, {}, options)

    def specialise(path: tuple[int, ...], value: Any, constant: bool) -> Any:
        """The type of the argument, or of the tuple of arguments, that lies at `path`."""
        if kernel.params[path[0]].do_not_specialize:
            return "i32" if abs(value) < 2**31 else "i64"
        if constant or value is None or (isinstance(value, int) and value == 1):
            launch.constants[path] = value
            return "constexpr"
        if isinstance(value, tuple):
            return type(value)(*(specialise((*path, i), part, False) for i, part in enumerate(value)))
        if isinstance(value, Tensor):
            type_ = f"*{TRITON_TYPES[value.dtype]}"
            value = value.storage_offset() * value.element_size()
        else:
            assert isinstance(value, int), f"{kernel.params[path[0]].name}: {value!r}"
            type_ = "i32" if abs(value) < 2**31 else "i64"
        if value % 16 == 0:
            launch.attributes[path] = [["tt.divisibility", 16]]
        return type_

    for i, parameter in enumerate(kernel.params):
        launch.signature[parameter.name] = specialise((i,), bound[parameter.name], parameter.is_constexpr)
    return launch


def launches_of(monkeypatch: pytest.MonkeyPatch, launcher: Callable[..., Any], *args: Any) -> list[Launch]:
    """What a launcher launches, each kind once."""
    from triton.runtime.jit import JITFunction

    found: dict[str, Launch] = {}

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        assert all(0 < n < 2**31 for n in grid)
        launch = noted(kernel, args, kwargs)
        found[str((kernel.fn.__name__, *launch[1:]))] = launch

    monkeypatch.setattr(JITFunction, "run", note)
    launcher(*args)
    monkeypatch.undo()
    return list(found.values())


def compile_triton(launch: Launch, target: Any) -> Any:
    import triton
    from triton.compiler import ASTSource

    source = ASTSource(launch.kernel, launch.signature, constexprs=launch.constants, attrs=launch.attributes)
    return triton.compile(source, target=target, options=launch.options)


def machine_code(compiled: Any, folder: Path) -> tuple[dict[str, int], set[str]]:
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
    return resources, set(re.findall(r"\b(?:LDG|STG|LDL|STL)(?:\.[A-Z0-9_]+)*", code))


# Kernels that stream maps, which are to be read and written by 16 bytes; others read a few numbers, or pixel by pixel
STREAMING = {
    "_ngwp_focal_pool_bwd_kernel": ("LDG", "STG"),
    "_soft_margin_loss_fwd_kernel": ("LDG",),
    "_soft_margin_loss_bwd_kernel": ("LDG", "STG"),
    "_one_versus_rest_fwd_kernel": ("LDG", "STG"),
    "_one_versus_rest_bwd_kernel": ("LDG", "STG"),
    "_prior_loss_fwd_kernel": ("LDG",),
    "_prior_loss_bwd_kernel": ("LDG", "STG"),
    "_pseudo_label_loss_fwd_kernel": ("LDG", "STG"),
    "_pseudo_label_loss_bwd_kernel": ("LDG", "STG"),
    "_confident_labels_peaks_kernel": ("LDG",),
    "_confident_labels_fwd_kernel": ("LDG",),
    "_balanced_cross_entropy_fwd_kernel": ("LDG",),
    "_balanced_cross_entropy_bwd_kernel": ("LDG", "STG"),
}


ALWAYS = {(21, torch.float32, 80), (81, torch.bfloat16, 90)}
GRID = [
    pytest.param(*case, id="-".join(map(str, case)), marks=() if case in ALWAYS else pytest.mark.slow)
    for case in itertools.product((21, 81, 128, 1000), (torch.float32, torch.bfloat16), (80, 90, 100))
]


@needs_triton
def test_streaming_kernels_exist():
    kernels = {
        name for family in raw_calls.FAMILIES for name in vars(importlib.import_module(f"wilson.kernels.{family}"))
    }
    assert set(STREAMING) <= kernels


@needs_triton
@pytest.mark.parametrize(("classes", "dtype", "arch"), GRID)
@pytest.mark.parametrize("family", raw_calls.FAMILIES)
def test_triton_kernels(family, classes, dtype, arch, tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget

    launchers = importlib.import_module(f"wilson.kernels.{family}")
    for op, args in raw_calls.FAMILIES[family](raw_calls.Blank(classes, dtype)):
        for launch in launches_of(monkeypatch, getattr(launchers, op), *args):
            name = launch.kernel.fn.__name__
            resources, memory = machine_code(compile_triton(launch, GPUTarget("cuda", arch, 32)), tmp_path)
            what = f"{op}, {name}, {classes} classes, {dtype}, sm_{arch}: {resources}, {sorted(memory)}"
            print(what)
            spills = resources["LOCAL"] or resources["STACK"] or any(m.startswith(("LDL", "STL")) for m in memory)
            assert not spills, what
            for access in STREAMING.get(name, ()):
                if access == "STG" and args[-1] is False:  # with_derivative
                    continue
                assert any(m.startswith(access) and ".128" in m for m in memory), what


@needs_triton
@pytest.mark.parametrize("family", raw_calls.FAMILIES)
def test_another_batch_compiles_nothing(family, monkeypatch):
    """The last batch of an epoch must not wait for a compiler, nor be unfit for a CUDA graph."""
    from triton import JITFunction, knobs

    from tests.emulator import triton_driver

    launchers = importlib.import_module(f"wilson.kernels.{family}")
    for kernel in vars(launchers).values():  # as in a new process
        if isinstance(kernel, JITFunction):
            monkeypatch.setattr(kernel, "device_caches", defaultdict(kernel.create_binder))
    kernels: dict[int, set[str]] = {}
    with triton_driver.use(arch=90), knobs.runtime.scope():
        for batch in (2, 1, 3, 16):  # 1 and multiples of 16 are what Triton compiles kernels of their own for
            found = kernels[batch] = set()

            def note(*, key: str, repr: str, found: set[str] = found, **_: Any) -> bool:
                found.add(f"{repr} {key}")
                return True  # do not compile

            knobs.runtime.jit_cache_hook = note
            for op, args in raw_calls.FAMILIES[family](raw_calls.Blank(21, torch.float32, (9, 9), batch=batch)):
                getattr(launchers, op)(*args)
    assert kernels[2]
    for batch, found in kernels.items():
        assert found == kernels[2], f"{batch} images: {found ^ kernels[2]}"


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("family", raw_calls.FAMILIES)
def test_triton_kernels_for_amd(family, monkeypatch):
    from triton.backends.compiler import GPUTarget

    launchers = importlib.import_module(f"wilson.kernels.{family}")
    for op, args in raw_calls.FAMILIES[family](raw_calls.Blank(21, torch.float32)):
        for launch in launches_of(monkeypatch, getattr(launchers, op), *args):
            assert compile_triton(launch, GPUTarget("hip", "gfx942", 64)).asm["hsaco"]

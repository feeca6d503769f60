"""The project's .cu files as ops on CPU tensors: nvcc builds them, their launchers run as they are, their PTX here."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import build, ptx
from .kernel import Kernel, current
from .limits import LaunchError

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
# One dispatch key for each architecture, of those that torch keeps for devices that nobody has
KEYS = {80: "PrivateUse2", 90: "PrivateUse3"}
_ON_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_uint), ctypes.c_size_t,
    ctypes.c_int64, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip


@functools.cache
def nvcc() -> str:
    """The toolkit's own compiler; BuildError if there is none, or one that does not fit torch."""
    for place in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if not place or not Path(place).exists():
            continue
        # what is on the PATH may be a wrapper: nvcc itself tells where its toolkit is
        top = re.search(r"#\$ TOP=(\S+)", build.run([place, "--dryrun", "-x", "cu", __file__]))
        found = str((Path(top[1]) / "bin" / "nvcc").resolve()) if top else place
        version = re.search(r"release (\d+)\.", build.run([found, "--version"]))
        if not version or version[1] != (torch.version.cuda or "").split(".")[0]:
            raise build.BuildError(f"torch is built for CUDA {torch.version.cuda}, not for that of {found}")
        return found
    raise build.BuildError("nvcc is not there")


def sources() -> dict[str, Path]:
    """Family: its .cu file."""
    return {path.stem: path for path in sorted((CSRC / "cuda").glob("*.cu"))}


class CudaLibrary:
    """A .cu file for one architecture, and its raw ops."""

    def __init__(self, source: Path, arch: int) -> None:
        self.source, self.arch, self.key = source, arch, KEYS[arch]
        folder = _built(source, arch)
        self._module = ptx.parse((folder / "kernels.ptx").read_text())
        self._kernels: dict[str, Kernel] = {}
        self._error: Exception | None = None
        self._callback = _ON_LAUNCH(self._on_launch)  # kept: the library calls it
        library = folder / "library.so"
        self._runtime = ctypes.CDLL(str(library))
        self._runtime.emulator_on_launch(self._callback)
        torch.ops.load_library(str(library))

    def _on_launch(
        self, name: bytes, grid: Any, block: Any, shared: int, asked: int, wrong: bytes, arguments: Any
    ) -> int:
        """Called by the launchers; an exception must not pass through them, so it is kept."""
        try:
            session = current()
            if session is None:
                raise RuntimeError("launch emulated kernels within emulator.kernel.session()")
            if wrong:
                raise LaunchError(f"{name.decode()}: {wrong.decode()}")
            kernel = self._kernels.get(name.decode())
            if kernel is None:
                kernel = self._kernels[name.decode()] = Kernel(self._module, name.decode())
            leave = None if asked < 0 else asked
            sizes = kernel.parameters if session.runs else []
            values = [ctypes.string_at(arguments[n], size) for n, (_, size) in enumerate(sizes)]
            kernel.launch(session, grid[:3], block[:3], values, shared, leave)
        except Exception as error:
            self._error = self._error or error
            return 1
        return 0

    def launcher(self, op: str) -> Callable[..., Any] | None:
        """The raw op `wilson::op` of this library, for CPU tensors."""
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"wilson::{op}", self.key):
            return None
        definition = getattr(torch.ops.wilson, op).default
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, self.key))

        def run(*args: Any) -> Any:
            self._error = None
            try:
                result = definition.redispatch(keys, *args)
            except RuntimeError:
                if self._error is None:
                    raise
            checked = self._runtime.emulator_checked()
            if self._error:
                raise self._error from None
            if not checked:
                raise LaunchError(f"{op} does not look for an error after its last launch")
            return result

        return run


@functools.cache
def library(family: str, arch: int = 90) -> CudaLibrary:
    return CudaLibrary(sources()[family], arch)


def _built(source: Path, arch: int) -> Path:
    torch_root = Path(torch.__file__).parent
    runtime = Path(__file__).with_name("cudart.cpp")
    includes = [f"-I{CSRC}", f"-I{torch_root / 'include'}"]
    definitions = ["-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={_torch_target()}", "-DNDEBUG"]
    # PTX alone: no time goes into machine code that nobody runs. --keep leaves it beside the object.
    command = [
        nvcc(), "-std=c++17", "-O3", *definitions, "--expt-relaxed-constexpr", *includes, "-Xcompiler=-fPIC,-O0",
        "-gencode", f"arch=compute_{arch},code=compute_{arch}", "--keep",
    ]  # fmt: skip
    headers = [
        path for folder in (CSRC, CSRC / "math", CSRC / "cuda" / "common") for path in sorted(folder.glob("*.h"))
    ]
    texts = [p.read_text() for p in (source, runtime, *headers)]
    key = build.key_of(
        [*command, torch.__version__, build.compiler(), KEYS[arch], build.run([nvcc(), "--version"]), *texts]
    )

    def make(folder: Path) -> None:
        build.run([*command, "--keep-dir", folder, "-c", source, "-o", folder / "launchers.o"], folder)
        (folder / f"{source.stem}.ptx").rename(folder / "kernels.ptx")
        for left_over in folder.iterdir():
            if left_over.name not in ("launchers.o", "kernels.ptx"):
                left_over.unlink()
        build.run(
            [build.CXX, "-std=c++17", "-fPIC", "-shared", "-Wl,-Bsymbolic", f'-DEMULATED_KEY="{KEYS[arch]}"', runtime,
             folder / "launchers.o", f"-L{torch_root / 'lib'}", "-ltorch_cpu", "-ldl", "-o", folder / "library.so"]
        )  # fmt: skip
        (folder / "launchers.o").unlink()

    return build.cached(f"{source.stem}-sm{arch}-{key}", make)


def _torch_target() -> str:
    """The oldest torch that the binaries load in, as pyproject.toml has it, in the form of torch's headers."""
    ((major, minor),) = re.findall(r"torch>=(\d+)\.(\d+)", (ROOT / "pyproject.toml").read_text())
    return hex(int(major) << 56 | int(minor) << 48)

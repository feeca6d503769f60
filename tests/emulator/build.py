"""Compiles the machine and the CUDA sources, once for each content; the results stay in the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
# Read at import: the tests send XDG_CACHE_HOME elsewhere once they run, and a cache must outlive them
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wilson" / "emulator"
JOBS = 2
CXX = os.environ.get("CXX", "g++")
# No contraction and no strict aliasing: the machine computes what PTX says, in registers that it reads as any type.
# -march=native for fused multiply-add; the key of the cache names the processor.
FLAGS = (
    "-std=c++20", "-O1", "-ftree-vectorize", "-march=native", "-ffp-contract=off", "-frounding-math", "-fwrapv",
    "-fno-strict-aliasing", "-fPIC", "-Wall",
)  # fmt: skip


class BuildError(Exception):
    """A compiler is missing or failed."""


def run(command: Sequence[str | Path], folder: Path | None = None) -> str:
    result = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)
    if result.returncode:
        raise BuildError(f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def key_of(parts: Iterable[object]) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:24]


def cached(key: str, build: Callable[[Path], None]) -> Path:
    """The folder that `build` filled for this key: complete or not there, also with several processes at once."""
    folder = CACHE / key
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=CACHE, prefix="building-"))
        try:
            build(work)
            work.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


@functools.cache
def compiler() -> str:
    """The C++ compiler and the processor that it compiles for."""
    if shutil.which(CXX) is None:
        raise BuildError(f"the emulator needs a C++ compiler: {CXX} is not there")
    version = run([CXX, "--version"]).splitlines()[0]
    target = subprocess.run([CXX, "-march=native", "-Q", "--help=target"], capture_output=True, text=True).stdout
    return version + target


@functools.cache
def machine() -> ctypes.CDLL:
    """The machine, loaded."""
    sources = sorted((HERE / "machine").iterdir())
    key = key_of([compiler(), FLAGS, *(s.name + s.read_text() for s in sources)])

    def build(folder: Path) -> None:
        units = [s for s in sources if s.suffix == ".cpp"]
        with ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(lambda s: run([CXX, *FLAGS, "-c", s, "-o", folder / f"{s.stem}.o"]), units))
        run([CXX, "-shared", *(folder / f"{s.stem}.o" for s in units), "-o", folder / "machine.so"])

    return ctypes.CDLL(str(cached(f"machine-{key}", build) / "machine.so"))

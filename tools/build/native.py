"""The build of the compiled core: reads the switches, runs CMake with ninja."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MODES = ("auto", "cpu", "cuda", "none")
INSTEAD = "WILSON_BUILD=none installs without compiled kernels (every op then runs in plain PyTorch)"
CUDA_OPTIONS = {
    "auto": ["-DWILSON_CUDA=AUTO"],
    "cpu": ["-DWILSON_CUDA=OFF", "-DWILSON_CUDA_REASON=WILSON_BUILD=cpu"],
    "cuda": ["-DWILSON_CUDA=ON"],
}
NAMED_ARCHITECTURES = {
    "Pascal": "6.0;6.1+PTX",
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;12.0+PTX",
}
DEFAULT_ARCHITECTURES = ("", "all", "common")  # words of PyTorch's for what is built without a list
OFF = ("", "0", "false", "no", "off")
BYTES_PER_JOB = 2 << 30  # what one nvcc needs at its worst


class BuildError(SystemExit):
    """Ends the build with one line instead of a traceback."""

    def __init__(self, text: str) -> None:
        super().__init__(f"wilson: {text}")


def mode() -> str:
    """Return the switch WILSON_BUILD: auto, cpu, cuda or none."""
    value = os.environ.get("WILSON_BUILD", "auto").lower()
    if value not in MODES:
        raise BuildError(f"WILSON_BUILD: expected one of {', '.join(MODES)}, got {value!r}")
    return value


def check_machine() -> None:
    """Stop with one line where the compiled core cannot be built."""
    machine = platform.machine().lower()
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        raise BuildError(f"no compiled kernels for {sys.platform} on {machine} (Linux on x86-64 or aarch64); {INSTEAD}")
    compiler = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in compiler):
        raise BuildError(f"no C++ compiler found (looked for {', '.join(compiler)}); install one, or: {INSTEAD}")


def cuda_architectures(text: str) -> str:
    """Translate TORCH_CUDA_ARCH_LIST to CMake: "8.0;9.0+PTX" is "80-real;90" (90 alone is machine code and PTX)."""
    for name, meaning in NAMED_ARCHITECTURES.items():
        text = re.sub(rf"\b{name}\b(\+PTX)?", meaning, text)
    architectures = []
    for word in re.split(r"[;,\s]+", text.strip()):
        if word.lower() == "native":
            architectures.append("native")
            continue
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", word)
        if match is None:
            raise BuildError(f'TORCH_CUDA_ARCH_LIST: expected words like "8.0" or "9.0+PTX", got {word!r}')
        major, minor, feature, ptx = match.groups()
        architectures.append(f"{major}{minor}{feature}" + ("" if ptx else "-real"))
    return ";".join(dict.fromkeys(architectures))


def jobs() -> int:
    """Return how many compilers may run at once: MAX_JOBS, else as many as cores and memory allow."""
    value = os.environ.get("MAX_JOBS", "")
    if value:
        if not value.isdigit() or int(value) == 0:
            raise BuildError(f"MAX_JOBS: expected a positive number, got {value!r}")
        return int(value)
    return max(1, min(len(os.sched_getaffinity(0)), _free_memory() // BYTES_PER_JOB))


def _free_memory() -> int:
    meminfo = Path("/proc/meminfo").read_text()
    free = int(re.search(r"MemAvailable:\s+(\d+) kB", meminfo).group(1)) << 10
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")  # inside a container
    if limit.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def build(source: Path, folder: Path, *, python_module: bool = False) -> None:
    """Compile the libraries of `source` into `folder`, as the switches ask, and if asked the module wilson._C.

    A CUDA part that fails under WILSON_BUILD=auto is left out, and the library says why. So is one for architectures
    that cannot be read; a build for the CPU does not look at them.
    """
    check_machine()
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} not found: leave out --no-build-isolation, or first: pip install cmake ninja")
    module = f"-DWILSON_PYTHON_MODULE={'ON' if python_module else 'OFF'}"
    options = [module, *CUDA_OPTIONS[mode()]]
    text = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if mode() != "cpu" and text.lower() not in DEFAULT_ARCHITECTURES:
        try:
            options = [*options, f"-DCMAKE_CUDA_ARCHITECTURES={cuda_architectures(text)}"]
        except BuildError as error:
            if mode() == "cuda":
                raise
            print(f"{error}; building for the CPU alone", flush=True)
            reason = str(error).removeprefix("wilson: ").replace(";", ",")  # CMake divides lists there
            options = [module, "-DWILSON_CUDA=OFF", f"-DWILSON_CUDA_REASON={reason}"]
    try:
        _cmake(source, folder, options)
    except subprocess.CalledProcessError as error:
        reason = _first_error(error.output)
        if mode() != "auto":
            instead = INSTEAD if mode() == "cpu" else "WILSON_BUILD=cpu builds without CUDA"
            raise BuildError(f"the build failed, see above: {reason}; {instead}") from None
        reason = f"the build with CUDA failed: {reason}"
        print(f"wilson: {reason}; building for the CPU alone", flush=True)
        shutil.rmtree(folder)
        try:
            _cmake(source, folder, [module, "-DWILSON_CUDA=OFF", f"-DWILSON_CUDA_REASON={reason}"])
        except subprocess.CalledProcessError as second:
            raise BuildError(f"the build failed, see above: {_first_error(second.output)}; {INSTEAD}") from None


def _cmake(source: Path, folder: Path, options: Sequence[str]) -> None:
    configuration = [
        f"-DCMAKE_BUILD_TYPE={'Release' if os.environ.get('DEBUG', '').lower() in OFF else 'Debug'}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    _run(["cmake", "-S", str(source), "-B", str(folder), "-G", "Ninja", *configuration, *options])
    _run(["cmake", "--build", str(folder), "--parallel", str(jobs())])


def _run(command: Sequence[str]) -> None:
    """Run a command, showing its output while it comes; a failure raises with that output."""
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output="".join(lines))


def _first_error(output: str) -> str:
    """Return, in one line, the first thing that went wrong; CMake's text is the paragraph after "CMake Error"."""
    cmake = re.search(r"^CMake Error.*\n((?:  .*\n)+)", output, re.MULTILINE)
    if cmake:
        return " ".join(cmake.group(1).split())
    compiler = re.search(r"^.*\b(?:error|fatal)\b.*$", output, re.MULTILINE | re.IGNORECASE)
    return compiler.group().strip() if compiler else "no error message"

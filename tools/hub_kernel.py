"""Lays wheels out as a repository that Hugging Face's package `kernels` loads.

    python tools/hub_kernel.py OUT WHEEL...
    python -c "import kernels; ops = kernels.get_local_kernel('OUT'); print(ops.providers())"

Runs on a machine of the wheels' kind, with torch, because it asks their libraries what they are. Each wheel of
`tools/wheels.sh` becomes one variant, OUT/build/torch-stable-abi210-cpu-x86_64-linux or ...-cu130-...:
the ops, their kernels and what tells them apart, without the training. OUT/build.toml describes the same build from the
sources for `kernel-builder`, which was not run. The ops register as torch.ops.wilson, so that a process takes them
either from here or from the package wilson, not from both.
"""

import ctypes
import hashlib
import json
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PARTS = ("wilson/ops/", "wilson/kernels/", "wilson/_C_")
INIT = '''"""Fused ops of weakly incremental semantic segmentation: wilson.ops."""

from .ops import *
from .ops import __all__
'''
BUILD = """[general]
name = "wilson"
version = 1
edition = 5
license = "MIT"
backends = ["cpu", "cuda"]

[torch]
src = ["csrc/build_info.cpp", "csrc/build_info.h"]
include = ["csrc"]

[torch.stable-abi]
cpu = "{torch}"
cuda = "{torch}"

[kernel.cpu]
backend = "cpu"
depends = ["torch"]
include = ["csrc"]
src = [{cpu}]

[kernel.cuda]
backend = "cuda"
depends = ["torch"]
cuda-capabilities = ["8.0", "9.0", "10.0"]
include = ["csrc"]
src = [{cuda}]
"""


def main(out: Path, wheels: list[Path]) -> None:
    """Write the folder; it must not exist yet."""
    if out.exists():
        sys.exit(f"{out}: exists already; give another folder, or remove it")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.search(r"torch>=([\d.]+)", pyproject)[1]
    for wheel in wheels:
        write_variant(out / "build", wheel, oldest)
    (out / "build.toml").write_text(described(oldest), encoding="utf-8")
    print(out)


def write_variant(folder: Path, wheel: Path, oldest_torch: str) -> None:
    """One wheel as one variant."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(PARTS) and not name.endswith("/")]
        info = build_info(archive)
        machine = re.search(r"(x86_64|aarch64)\.whl$", wheel.name)[1]
        kind = "cuda" if info["cuda_architectures"] else "cpu"
        backend = "cu" + "".join(info["cuda"].split(".")[:2]) if kind == "cuda" else kind
        variant = folder / f"torch-stable-abi{oldest_torch.replace('.', '')}-{backend}-{machine}-linux"
        for name in names:
            target = variant / name.removeprefix("wilson/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
    (variant / "__init__.py").write_text(INIT, encoding="utf-8")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()[:7]
    numbers = [name.removesuffix("+PTX") for name in info["cuda_architectures"]]
    archs = [f"{number[:-1]}.{number[-1]}" for number in numbers]
    metadata = {
        "name": "wilson",
        "id": f"_wilson_{kind}_{digest}",
        "version": 1,
        "license": "MIT",
        "python-depends": [],
        "backend": {"type": kind, **({"archs": archs} if archs else {})},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def build_info(archive: zipfile.ZipFile) -> dict[str, Any]:
    """What the CPU library tells of the build, CUDA's part included."""
    import torch  # noqa: F401  brings what the library is linked with

    try:
        with tempfile.TemporaryDirectory() as folder:
            tell = ctypes.CDLL(archive.extract("wilson/_C_cpu.so", folder)).wilson_build_info
    except OSError as error:
        sys.exit(f"{archive.filename}: its library does not load here ({error}); lay it out on a machine of its kind")
    tell.restype = ctypes.c_char_p
    return dict(json.loads(tell()))


def described(oldest_torch: str) -> str:
    """The text of build.toml."""

    def listed(kind: str, *patterns: str) -> str:
        files = sorted(path for pattern in patterns for path in (ROOT / "csrc").rglob(pattern))
        within = [path.relative_to(ROOT).as_posix() for path in files]
        return ", ".join(f'"{path}"' for path in within if path.split("/")[1] in (kind, "math") or path.count("/") == 1)

    cpu, cuda = listed("cpu", "*.h", "*.cpp"), listed("cuda", "*.h", "*.cuh", "*.cu")
    return BUILD.format(torch=oldest_torch, cpu=cpu, cuda=cuda)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])

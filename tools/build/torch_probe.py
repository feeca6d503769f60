"""Find the torch to build against, without importing it.

pip builds in an environment of its own, on top of the same interpreter. The torch that matters is the one of the
environment being installed into, so it is looked for there first, and in the build environment only when there is none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_FIND = """
import importlib.util, json, os
spec = importlib.util.find_spec("torch")
if spec is None or spec.origin is None:
    raise SystemExit(1)
root = os.path.dirname(spec.origin)
version = {}
exec(open(os.path.join(root, "version.py")).read(), version)
print(json.dumps({"root": root, "version": str(version["__version__"]), "cuda": version.get("cuda") or ""}))
"""


@dataclass(frozen=True)
class Torch:
    """An installed torch: its folder, its version, and the CUDA version it was built for ("" without CUDA)."""

    root: str
    version: str
    cuda: str


def probe() -> Torch | None:
    """Return the torch of the target environment, else that of the build environment, else None."""
    # The build environment reaches the interpreter by PYTHON* variables: without them it is the target's again.
    target = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    here = Path(__file__).resolve().parent  # not the caller's folder: "" on the path would find a torch/ in it
    for environment in (target, dict(os.environ)):
        found = subprocess.run([sys.executable, "-c", _FIND], env=environment, cwd=here, capture_output=True, text=True)
        if found.returncode == 0:
            return Torch(**json.loads(found.stdout))
    return None


if __name__ == "__main__":  # CMake reads one line: root;version;cuda
    torch = probe()
    if torch is None:
        sys.exit(f"no torch in the environment of {sys.executable}")
    print(f"{torch.root};{torch.version};{torch.cuda}")

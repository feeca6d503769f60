"""The Triton kernels by Triton's interpreter, in a process of its own."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

CHILD = Path(__file__).with_name("triton_interpreter.py")


@pytest.mark.slow  # some minutes
def test_triton_kernels_in_the_interpreter():
    if importlib.util.find_spec("wilson.kernels") is None:
        pytest.skip("wilson.kernels is not installed: run pip install -e .")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CHILD)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, cwd=CHILD.parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    # none skipped; numpy warns of infinities that the kernels leave out
    assert re.search(r"^\d+ passed(, \d+ warnings)? in", result.stdout, re.MULTILINE), result.stdout

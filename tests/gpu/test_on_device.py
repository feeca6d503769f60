"""The ops on a GPU, where there is one, each provider in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHILD = Path(__file__).with_name("on_device.py")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; elsewhere the emulator executes the kernels")
@pytest.mark.parametrize("provider", ["cuda", "triton"])
def test_ops_on_the_gpu(provider):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(CHILD)]
    environment = os.environ | {"WILSON_CUDA_PROVIDER": provider}
    result = subprocess.run(command, env=environment, cwd=CHILD.parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr

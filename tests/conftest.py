"""What holds for every test: the same numbers in every run, no network, nothing written outside temporary folders."""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

# With `pytest -n 2` two processes share the cores
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `pytest -n 2`, run the tests of one family of emulated CUDA kernels in one process.

    Compiling a family for the emulator takes ten seconds and more, and two processes would both do it.
    """
    from xdist.scheduler import LoadScopeScheduling

    from wilson.ops._registry import OPS

    families = {op.family: op.family for op in OPS.values()} | {name: op.family for name, op in OPS.items()}

    class ByFamily(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, test = nodeid.partition("::")
            if not path.endswith(("test_emulated_cuda.py", "test_launches.py")):
                return nodeid
            given = re.split(r"[\[\]-]", test)
            return next((families[part] for part in given if part in families), nodeid)

    return ByFamily(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))  # for child processes, too


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test tried to reach the network: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """So that sums are added up in one order, and small maps do not wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

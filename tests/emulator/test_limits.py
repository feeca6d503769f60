"""Launches that a GPU refuses, one beyond each limit and one at it."""

from __future__ import annotations

import shutil

import pytest

from tests.emulator import build, kernel, ptx
from tests.emulator.limits import EVERYWHERE_SHARED_BYTES, FREE_SHARED_BYTES, KIB, LaunchError

pytestmark = pytest.mark.skipif(shutil.which(build.CXX) is None, reason=f"needs {build.CXX}")

BOUND = ".maxntid 1024"


def launch(
    grid: tuple[int, ...] = (1,),
    block: tuple[int, ...] = (32,),
    *,
    bound: str = BOUND,
    declared: int = 0,
    dynamic: int = 0,
    asked: int | None = None,
    target: str = "sm_90",
    arguments: int = 8,
) -> None:
    """Ask for a launch of a kernel that does nothing."""
    shared = f".shared .align 16 .b8 tile[{declared}];" if declared else ""
    text = f"""
    .version 8.0
    .target {target}
    .address_size 64
    .visible .entry k(.param .align 8 .b8 all[{arguments}])
    {bound}
    {{ {shared} ret; }}
    """
    with kernel.launches_only() as session:
        kernel.Kernel(ptx.parse(text)).launch(session, grid, block, [bytes(arguments)], dynamic, asked)
    assert len(session.launches) == 1


def refused(match: str, *args, **kwargs) -> None:
    with pytest.raises(LaunchError, match=match):
        launch(*args, **kwargs)


def test_blocks_and_grids():
    launch((2**31 - 1,))
    launch((1, 65535, 65535), (4, 4, 64))
    for grid in ((2**31,), (1, 65536), (1, 1, 65536), (0,), (1, 0)):
        refused("no grid", grid)
    launch(block=(1024,))
    for block in ((1025,), (32, 33), (1, 1, 65), (0,)):
        refused("no block", block=block)


@pytest.mark.parametrize("bound", [".maxntid 256, 1, 1", ".maxntid 32, 8", ".minnctapersm 1 .maxntid 256"])
def test_launch_bounds(bound):
    launch(block=(32, 8), bound=bound)
    refused("at most 256 threads", block=(32, 9), bound=bound)


def test_blocks_of_one_size():
    launch(block=(128,), bound=".reqntid 128")
    refused("blocks of", block=(64,), bound=".reqntid 128")


def test_registers():
    """Without bounds a thread may have 255; with them the compiler leaves room."""
    launch(block=(256,), bound="")
    refused("registers", block=(257,), bound="")
    launch(block=(512,), bound=".maxnreg 128")
    refused("registers", block=(513,), bound=".maxnreg 128")
    launch(block=(1024,), bound=".maxntid 1024 .minnctapersm 2")


def test_shared_memory_that_nobody_asks_for():
    launch(declared=FREE_SHARED_BYTES)
    refused("declares", declared=50 * KIB)
    launch(dynamic=FREE_SHARED_BYTES)
    refused("dynamic", dynamic=FREE_SHARED_BYTES + 1)
    launch(declared=2 * KIB, dynamic=FREE_SHARED_BYTES - 2 * KIB)
    refused("2048 declared", declared=2 * KIB, dynamic=FREE_SHARED_BYTES - 2 * KIB + 4)


def test_shared_memory_that_is_asked_for():
    most = 227 * KIB
    launch(dynamic=most, asked=most)
    launch(dynamic=most - KIB, declared=KIB, asked=most - KIB)
    refused("asked for", dynamic=100 * KIB, asked=99 * KIB)
    refused("more than", dynamic=most, asked=most + 1)
    refused("more than", dynamic=most, declared=16, asked=most)
    for target, bytes_ in (("sm_80", 163 * KIB), ("sm_86", 99 * KIB), ("sm_90a", most)):
        launch(dynamic=bytes_, asked=bytes_, target=target)
        refused("more than", dynamic=bytes_ + 1, asked=bytes_ + 1, target=target)
    assert EVERYWHERE_SHARED_BYTES == 99 * KIB


def test_clusters():
    launch((8, 2), bound=f"{BOUND} .reqnctapercluster 4, 2")
    refused("divided", (6, 2), bound=f"{BOUND} .reqnctapercluster 4, 2")
    refused("at most 8", (16,), bound=f"{BOUND} .reqnctapercluster 16")


def test_arguments():
    launch(arguments=4096)
    refused("arguments", arguments=4104)

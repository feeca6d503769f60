"""Options of the benchmarks, and the threads they run on."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the cases are the tests'

torch.set_num_threads(min(2, torch.get_num_threads()))  # the published ratios are for 2 threads


def pytest_addoption(parser):
    parser.addoption(
        "--shapes",
        choices=["small", "voc", "coco", "all"],
        default="all",
        help="grids to measure: small (4, 21, 16, 16), voc (24, 21, 32, 32), coco (12, 81, 56, 56), all: voc and coco",
    )


def pytest_generate_tests(metafunc):
    if "grid" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--shapes")
        metafunc.parametrize("grid", ["voc", "coco"] if chosen == "all" else [chosen])


@pytest.fixture(scope="session", autouse=True)
def _clean_compiler():
    yield
    torch.compiler.reset()

"""Options of the benchmarks, and the threads they run on."""

import torch

torch.set_num_threads(min(2, torch.get_num_threads()))  # the published ratios are for 2 threads


def pytest_addoption(parser):
    parser.addoption(
        "--shapes",
        choices=["small", "voc", "coco", "sweep"],
        default="voc",
        help="small: (4, 21, 16, 16); voc: (24, 21, 32, 32), 16 old classes; coco: (12, 81, 56, 56), 61 old; the base "
        "step's ops on (4, 16, 32, 32) to 512 and (4, 61, 56, 56) to 448; sweep: how cost grows with pixels, classes "
        "and images",
    )


def pytest_generate_tests(metafunc):
    if "grid" in metafunc.fixturenames:
        metafunc.parametrize("grid", [metafunc.config.getoption("--shapes")])


def pytest_collection_modifyitems(config, items):
    """The sweep is a file of its own; the other files measure one grid."""
    sweep = config.getoption("--shapes") == "sweep"
    other = [item for item in items if ("bench_sweep" in item.path.name) != sweep]
    config.hook.pytest_deselected(items=other)
    items[:] = [item for item in items if item not in other]

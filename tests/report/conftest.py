"""Three runs side by side, and the page that compares them."""

import pytest

from tests.support.run_folders import BASE, after, make_run, page_of


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        make_run(root / "base", "supervised", [BASE]),
        make_run(root / "finetune", "finetune", [after(10.0, 5.0, 40.0, None)], first=1),
        make_run(root / "wilson", "wilson", [after(66.0, 60.5, 50.0, 51.5)], first=1),
    ]


@pytest.fixture(scope="module")
def page(three_runs, tmp_path_factory):
    return page_of(three_runs, tmp_path_factory.mktemp("out"))

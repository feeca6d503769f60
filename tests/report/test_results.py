"""The tables: figures of each step, what counts as best, and which runs are compared."""

from tests.support.run_folders import BASE, MINUS, NEW, after, course_of, make_run, page_of
from wilson.report import results
from wilson.report.reading import read
from wilson.report.text import DASH


def test_the_table_shows_every_step_and_the_forgetting(page):
    assert ["supervised", DASH, "65.0", "73.3", DASH, "91.2"] in page.rows
    assert ["finetune", "7.5", "40.0", "33.8", f"{MINUS}57.5", "91.2"] in page.rows
    assert ["wilson", "63.2", "50.8", "61.6", f"{MINUS}1.8", "91.2"] in page.rows


def test_the_best_of_the_comparable_runs_is_bold(page):
    figures = {"63.2", "50.8", "61.6", f"{MINUS}1.8"}
    assert {figure for label, figure in page.bold if label == "wilson"} >= figures
    assert not {"7.5", "40.0", "33.8", f"{MINUS}57.5"} & {figure for label, figure in page.bold if label == "finetune"}
    assert not [label for label, _ in page.bold if label == "supervised"]  # nothing to compare it with


def test_runs_of_one_method_are_told_apart(tmp_path):
    values = [after(66.0, 60.5, 50.0, 51.5)]
    folders = [
        make_run(tmp_path / "a", "wilson", values, first=1, logs=False, pictures=False),
        make_run(tmp_path / "b", "wilson", values, first=1, seed=1, logs=False, pictures=False),
        make_run(tmp_path / "c", "wilson", values, first=1, seed=1, logs=False, pictures=False),
        make_run(tmp_path / "d", "finetune", values, first=1, logs=False, pictures=False),
    ]
    labels = results.labels([read(folder) for folder in folders])
    assert labels == ["wilson, seed 0", "wilson, seed 1, b", "wilson, seed 1, c", "finetune"]


def test_offline_is_split_like_its_neighbours_and_takes_no_prize(tmp_path):
    everything = after(80.0, 90.0, 70.0, 60.0)
    folders = [
        make_run(tmp_path / "wilson", "wilson", [BASE, after(66.0, 60.5, 50.0, 51.5)], logs=False, pictures=False),
        make_run(tmp_path / "finetune", "finetune", [after(1.0, 1.0, 1.0, 1.0)], first=1, logs=False, pictures=False),
        make_run(tmp_path / "offline", "offline", [everything], logs=False, pictures=False),
    ]
    last = results.groups([read(folder) for folder in folders])[-1]
    assert last.new == NEW
    offline = last.results[-1]
    assert offline.label == "offline"
    assert (offline.figures["old"], offline.figures["new"]) == (85.0, 65.0)
    assert offline.figures["change"] is None  # it had no first step to forget
    assert last.best("old") == 63.25


def test_forgetting_is_measured_against_the_run_with_the_same_seed(tmp_path):
    worse = {name: value - 20 for name, value in BASE.items()}
    folders = [
        make_run(tmp_path / "base0", "supervised", [BASE], logs=False, pictures=False),
        make_run(tmp_path / "base1", "supervised", [worse], seed=1, logs=False, pictures=False),
        make_run(tmp_path / "w1", "wilson", [after(50.0, 40.0, 1.0, 1.0)], first=1, seed=1, logs=False, pictures=False),
        make_run(tmp_path / "w2", "wilson", [after(50.0, 40.0, 1.0, 1.0)], first=1, seed=2, logs=False, pictures=False),
    ]
    last = results.groups([read(folder) for folder in folders])[-1]
    assert [result.figures["change"] for result in last.results] == [0.0, None]


def test_means_and_the_localizer_have_a_table(tmp_path):
    page = page_of([course_of(tmp_path)[0]], tmp_path)
    assert ["", "with background", "without background", "localizer"] in page.rows
    rest = ["11.1", "12.2", "13.3", "21.1", "22.2", "23.3"]
    assert ["wilson, step 0", *rest, DASH, DASH, DASH] in page.rows
    assert ["wilson, step 1", *rest, "31.1", "32.2", "33.3"] in page.rows


def test_results_without_these_means_have_no_such_table(page):
    assert "without background" not in page.text


def test_methods_that_see_all_masks_take_no_prize(tmp_path):
    folders = [
        make_run(tmp_path / method, method, [BASE, after(value, value, value, value)], logs=False, pictures=False)
        for method, value in (("wilson", 50.0), ("finetune", 40.0), ("joint", 90.0))
    ]
    assert results.groups([read(folder) for folder in folders])[-1].best("old") == 50.0

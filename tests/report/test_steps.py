"""The course of a task over its steps: classes in groups, as table, plot and section."""

import csv

from PIL import Image

from tests.support.run_folders import course_of, page_of
from wilson.report import steps
from wilson.report.reading import read
from wilson.report.text import DASH
from wilson.run_folder import RunFolder


def test_a_course_has_a_group_of_classes_for_each_step(tmp_path):
    run, entries = course_of(tmp_path)
    found = steps.course(read(run).steps)
    assert found.groups == [["cat", "dog"], ["cow"], ["<b>&sheep"]]
    assert found.values == [[65.0, None, None], [60.0, 45.0, None], [55.0, 40.0, None]]
    assert found.all == [entry["miou"]["all"] for entry in entries]
    later = steps.course(read(run).steps[1:])  # a run that began with another's checkpoint
    assert (later.steps, later.groups) == ([1, 2], [["cat", "dog", "cow"], ["<b>&sheep"]])


def test_the_course_is_written_as_table_and_plot(tmp_path):
    _, entries = course_of(tmp_path)
    text = steps.write(RunFolder(tmp_path), entries)
    assert text == steps.table(entries)
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["after", "step", "0", "65.0", DASH, DASH, "73.3"],
        ["after", "step", "1", "60.0", "45.0", DASH, "63.8"],
        ["after", "step", "2", "55.0", "40.0", DASH, "60.0"],
    ]
    rows = list(csv.reader((tmp_path / "steps.csv").open(newline="")))
    assert rows[0] == ["after step", "step 0", "step 1", "step 2", "all"]
    assert rows[2] == ["1", "60.00", "45.00", "", "63.75"]
    assert Image.open(tmp_path / "steps.png").width > 500


def test_the_report_shows_the_course_of_three_steps_and_not_of_two(tmp_path):
    page = page_of([course_of(tmp_path, "long")[0]], tmp_path)
    assert ["after step", "step 0cat, dog", "step 1cow", "step 2<b>&sheep", "all"] in page.rows
    assert ["2", "55.0", "40.0", DASH, "60.0"] in page.rows
    assert "classes of step 1" in page.text  # the plot's legend
    page = page_of([course_of(tmp_path, "short", steps=2)[0]], tmp_path)
    assert "Step by step" not in page.text

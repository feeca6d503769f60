"""Example pictures: written, read back, and their places in the table."""

import json

import numpy as np
from PIL import Image

from tests.support.run_folders import BASE, MINUS, NEW, OLD, after, make_run, page_of, write_panels
from wilson.pictures import palette
from wilson.report import panels
from wilson.report.text import DASH
from wilson.runs.examples import spread


def test_predictions_of_all_runs_stand_beside_one_localizer(page):
    head = next(row for row in page.rows if row and row[0] == "image")
    assert head == [
        "image",
        "localizerwilson",
        "pseudo-labelwilson",
        "predictionsupervised, step 0",
        "predictionfinetune, step 1",
        "predictionwilson, step 1",
        "truth",
    ]
    assert len(page.images) == 3 * len(head)  # three images, every cell filled


def test_one_run_with_both_steps_shows_before_and_after(tmp_path):
    run = make_run(tmp_path / "run", "wilson", [BASE, after(66.0, 60.5, 50.0, 51.5)])
    page = page_of([run], tmp_path)
    head = next(row for row in page.rows if row and row[0] == "image")
    assert head[3:5] == ["predictionwilson, step 0", "predictionwilson, step 1"]
    assert ["wilson", "63.2", "50.8", "61.6", f"{MINUS}1.8", "91.2"] in page.rows


def test_a_base_without_localizer_has_empty_cells(tmp_path):
    page = page_of([make_run(tmp_path / "run", "supervised", [BASE])], tmp_path)
    head = next(i for i, row in enumerate(page.rows) if row and row[0] == "image")
    assert page.rows[head + 1] == ["", DASH, DASH, "", ""]


def test_a_lost_picture_is_an_empty_cell(tmp_path):
    run = make_run(tmp_path / "run", "supervised", [BASE])
    (run / "step-0" / "panels" / "00-prediction.png").unlink()
    page = page_of([run], tmp_path)
    head = next(i for i, row in enumerate(page.rows) if row and row[0] == "image")
    assert page.rows[head + 1] == ["", DASH, DASH, DASH, ""]


def test_panels_read_back_as_written(tmp_path):
    write_panels(tmp_path, OLD + NEW, True)
    document = json.loads((tmp_path / "panels.json").read_text(encoding="utf-8"))
    assert document["classes"] == OLD + NEW
    assert document["ids"] == [0, 1, 2, 3, 4]
    found = panels.read(tmp_path)
    assert [panel.name for panel in found.panels] == ["image <0>", "image <1>", "image <2>"]
    panel = found.panels[1]
    assert panel.truth and panel.image and panel.localizer and panel.pseudo_label
    truth = Image.open(panel.truth)
    assert truth.mode == "P"
    assert sorted(np.unique(np.asarray(truth))) == [4, 255]
    assert truth.convert("RGB").getpixel((3, 3)) == palette.distinct(5)[4]
    assert Image.open(panel.localizer).size == (6, 4)
    assert Image.open(panel.pseudo_label).size == (6, 4)
    assert abs(int(np.asarray(Image.open(panel.image)).mean()) - 40) <= 1


def test_a_damaged_index_counts_as_no_panels(tmp_path):
    (tmp_path / "panels.json").write_text('{"classes": []')
    assert panels.read(tmp_path) is None
    assert panels.read(tmp_path / "nowhere") is None


def test_examples_show_every_class_and_prefer_images_of_several_steps():
    steps = [frozenset({1, 2}), frozenset({3, 4})]
    held = [frozenset({1})] * 20 + [frozenset({1, 3}), frozenset({2}), frozenset({4}), frozenset({5}), frozenset()]
    chosen = spread(held, steps, 3)
    assert chosen == [20, 21, 22], "classes 1 and 3 together, then 2, then 4; none of 5, which is in no step"
    assert spread(held, steps, 100) and len(set(spread(held, steps, 100))) == len(held)
    twelve = spread(held, steps, 12)
    assert {c for i in twelve for c in held[i]} >= {1, 2, 3, 4}

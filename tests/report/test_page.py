"""The page as a whole: everything named, escaped, drawn, and nothing that lies outside of the file."""

import json

import numpy as np

from tests.support.run_folders import BASE, NEW, after, make_run, page_of
from wilson import report
from wilson.report import confusion, drawing
from wilson.report.text import DASH
from wilson.run_folder import RunFolder


def test_class_names_are_escaped(page):
    assert NEW[1] in page.text  # parsed back as text ...
    assert "image <0>" in page.text
    assert "tiny<net>" in page.text
    assert not [tag for tag, _ in page.tags if tag in ("net", "0")]


def test_the_file_refers_to_nothing_outside(page):
    assert page.references
    assert all(reference.startswith(("data:image/", "#")) for reference in page.references)
    styles = [attributes["style"] for _, attributes in page.tags if "style" in attributes]
    assert not [style for style in styles if "url(" in style.replace("url(#", "")]
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}


def test_every_run_is_named_with_its_configuration(page):
    for folder in ("base", "finetune", "wilson"):
        assert any(row[1:5] == ["2-2", "overlap", "0", "demo"] and row[-1] == folder for row in page.rows)
    assert page.text.count("backbone: tiny<net>") == 3
    assert "wilson run --method finetune --note '<i>'" in page.text


def test_curves_and_bars_carry_their_names(page):
    for word in ("CLS", "ENC", "SEG", "validation mIoU (%)", "new classes", "cow", "after the first step"):
        assert word in page.text
    assert len([1 for tag, _ in page.tags if tag == "svg"]) == 4  # bars, and the curves of three runs


def test_a_class_absent_from_the_truth_is_a_dash_in_the_bars(three_runs, tmp_path):
    page = page_of([three_runs[1]], tmp_path)
    bars = page.text[page.text.index("Class by class") : page.text.index("Training")]
    assert DASH in bars
    whole = page_of([three_runs[2]], tmp_path)
    bars = whole.text[whole.text.index("Class by class") : whole.text.index("Training")]
    assert DASH not in bars


def test_the_same_runs_give_the_same_file(three_runs, tmp_path):
    one = report.write(three_runs, tmp_path / "a" / "one.html").read_bytes()
    assert one == report.write(three_runs, tmp_path / "two.html").read_bytes()


def test_many_classes_are_drawn_in_rows(tmp_path):
    names = ["background", *(f"class {number}" for number in range(60))]
    run = make_run(tmp_path / "run", "offline", [dict.fromkeys(names, 50.0)], logs=False, pictures=False)
    page = page_of([run], tmp_path)
    assert page.text.count("IoU (%)") == 3
    assert "class 59" in page.text


def test_drawings_take_the_pages_colours(three_runs, tmp_path):
    text = report.write(three_runs, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    body = text[text.index("<body>") :]
    for variable in ("--ink", "--muted", "--line", "--ground"):
        assert f"var({variable})" in body
        assert text.count(f"{variable}:") == 2  # light and dark
    assert drawing.INK not in body and drawing.GRID not in body


def test_the_page_says_what_a_step_learned_from_and_what_the_data_lack(tmp_path):
    task = "/".join(",".join(f"class_{step}_{i}" for i in range(10)) for step in range(2))
    run = make_run(tmp_path / "run", "wilson", [BASE, after(60.0, 50.0, 40.0, 30.0)], task=task)
    document = json.loads((run / "results.json").read_text())
    for entry, absent in zip(document["steps"], ([], ["dog"]), strict=True):
        entry["training"] = {"images": 120, "negatives": 0, "negatives_in_batch": 0, "absent": absent}
        entry["localizer"] = {"miou": {"old": 31.1, "new": 32.2, "all": 33.3}} if entry["step"] else None
        pixels = np.full((len(entry["classes"]),) * 2, 1000)
        pixels[0] = 1
        confusion.write(RunFolder(run).step(entry["step"]), entry["classes"], pixels, 3 if entry["step"] else 1)
    (run / "results.json").write_text(json.dumps(document))
    text = page_of([run], tmp_path).text
    assert "task of 10/10 classes" in text
    assert "learned from image-level labels without negatives" in text and "wilson, step 1: dog" in text
    assert "Background covers 0.0 %" in text
    document["steps"][1]["training"].update(negatives=40, negatives_in_batch=2, absent=[])
    (run / "results.json").write_text(json.dumps(document))
    text = page_of([run], tmp_path).text
    assert "40, 2 in each batch" in text
    assert "without negatives" not in text and "No training image holds" not in text

"""Confusion matrices: written, read back, and shown after the last step."""

import numpy as np
import torch
from PIL import Image

from tests.support.run_folders import Page, course_of, page_of
from wilson.report import confusion
from wilson.run_folder import RunFolder


def test_a_confusion_matrix_reads_back_and_is_shown_after_the_last_step(tmp_path):
    run, _ = course_of(tmp_path)
    last = ["background", "cat", "dog", "cow", "<b>&sheep"]
    matrix = np.diag([90, 70, 60, 50, 0])
    matrix[1, 4] = 30
    (run / "step-1").mkdir()
    (run / "step-2").mkdir()
    confusion.write(RunFolder(run).step(1), last[:4], torch.eye(4, dtype=torch.int64), 3)
    confusion.write(RunFolder(run).step(2), last, torch.from_numpy(matrix), 4)
    found = confusion.read(RunFolder(run).step(2))
    assert (found.classes, found.old) == (last, 4)
    assert np.array_equal(found.pixels, matrix)
    picture = Image.open(run / "step-2" / "confusion.png")
    assert picture.width == picture.height > 300
    page = page_of([run], tmp_path)
    shown = page.text[page.text.index("What is taken for what") : page.text.index("Training")]
    assert "wilson, step 2" in shown and "wilson, step 1" not in shown
    assert "70" in shown.split() and "30" in shown.split() and shown.count("<b>&sheep") == 2
    assert all(reference.startswith(("data:image/", "#")) for reference in page.references)


def test_without_a_whole_confusion_matrix_none_is_shown(tmp_path):
    run, _ = course_of(tmp_path)
    (run / "step-2").mkdir()
    for text in ('{"classes": ["a"', '{"classes": ["a", "b"], "old": 1, "pixels": [[1]]}', "{}"):
        (run / "step-2" / "confusion.json").write_text(text)
        assert confusion.read(RunFolder(run).step(2)) is None
    assert "What is taken for what" not in page_of([run], tmp_path).text


def test_a_matrix_of_81_classes_has_all_names_and_no_figures(tmp_path):
    names = [f"class {number}" for number in range(81)]
    drawn = confusion.svg(confusion.Confusion(names, 61, np.full((81, 81), 7)))
    shown = Page(drawn).text.split("\n")
    assert all(sum(name == line.strip() for line in shown) == 2 for name in names)
    assert not [line for line in shown if line.strip() == "1"]
    assert confusion.size(confusion.Confusion(names, 61, np.eye(81))) < 16  # inches

"""The report: figures, escaping, completeness, self-containedness, several runs, missing pieces."""

import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from wilson import report
from wilson.errors import UserError
from wilson.pictures import palette
from wilson.report import confusion, drawing, panels, results, steps
from wilson.report.reading import read
from wilson.report.results import DASH

OLD = ["background", "cat", "dog"]
NEW = ["cow", "<b>&sheep"]
BASE = {"background": 90.0, "cat": 70.0, "dog": 60.0}
MINUS = "\N{MINUS SIGN}"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The texts, references, tables and images of a page; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.references, self.images, self.tags = [], [], [], []
        self.rows, self.text, self.bold = [], "", set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.references += [attributes[name] for name in ("src", "href", "xlink:href") if name in attributes]
        if tag == "img":
            self.images.append(attributes)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
            if self.open[-1] == "b":
                self.bold.add((self.rows[-1][0], data))


def make_run(folder, method, iou, *, first=0, seed=0, task="2-2", logs=True, pictures=True, config=True):
    """A run folder. `iou` holds each step's IoU by class, the steps counted from `first`."""
    folder.mkdir(parents=True)
    steps = []
    for number, values in enumerate(iou, first):
        names = list(values)
        earlier = OLD if number else names[:1]
        steps.append(
            {
                "step": number,
                "classes": names,
                "iou": values,
                "miou": {
                    "old": mean(values, OLD[1:]) if number else None,
                    "new": mean(values, [name for name in names if name not in earlier]),
                    "all": mean(values, names),
                },
                "pixel_accuracy": 91.25,
            }
        )
        if logs:
            write_logs(folder / f"step-{number}", bool(number))
        if pictures:
            write_panels(folder / f"step-{number}" / "panels", names, bool(number))
    document = {"method": method, "task": task, "protocol": "overlap", "seed": seed, "steps": steps}
    (folder / "results.json").write_text(json.dumps(document))
    if config:
        settings = {"recipe": "demo", "task": task, "seed": seed, "model": {"backbone": "tiny<net>"}}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        (folder / "command.txt").write_text(f"wilson run --method {method} --note '<i>'")
    return folder


def mean(values, names):
    known = [values[name] for name in names if values[name] is not None]
    return sum(known) / len(known)


def write_logs(folder, incremental):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    for step in range(20):
        for term in ("cls", "enc", "total") if incremental else ("seg", "total"):
            writer.add_scalar(f"loss/{term}", 1 / (step + 1), step)
    writer.add_scalar("validation/miou_all", 55.0, 19)
    writer.close()


def write_panels(folder, names, incremental):
    labels = np.zeros((8, 12), np.int64)
    labels[2:6, 2:6] = len(names) - 1
    localizer = np.full((len(names), 4, 6), 1 / len(names)) if incremental else None
    entries = [
        panels.Entry(
            name=f"image <{number}>",
            image=np.full((8, 12, 3), 40 * number, np.uint8),
            prediction=labels,
            truth=np.where(labels == 0, 255, labels),
            localizer=localizer,
            pseudo_label=labels[::2, ::2] if incremental else None,
        )
        for number in range(3)
    ]
    panels.write(folder, names, range(len(names)), entries)


def after(cat, dog, cow, sheep):
    return {"background": 80.0, "cat": cat, "dog": dog, NEW[0]: cow, NEW[1]: sheep}


def page_of(folders, tmp_path):
    return Page(report.write(folders, tmp_path / "report.html").read_text(encoding="utf-8"))


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


def test_the_table_shows_every_step_and_the_forgetting(page):
    assert ["supervised", DASH, "65.0", "73.3", DASH, "91.2"] in page.rows
    assert ["finetune", "7.5", "40.0", "33.8", f"{MINUS}57.5", "91.2"] in page.rows
    assert ["wilson", "63.2", "50.8", "61.6", f"{MINUS}1.8", "91.2"] in page.rows


def test_the_best_of_the_comparable_runs_is_bold(page):
    figures = {"63.2", "50.8", "61.6", f"{MINUS}1.8"}
    assert {figure for label, figure in page.bold if label == "wilson"} >= figures
    assert not {"7.5", "40.0", "33.8", f"{MINUS}57.5"} & {figure for label, figure in page.bold if label == "finetune"}
    assert not [label for label, _ in page.bold if label == "supervised"]  # nothing to compare it with


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


def test_missing_pieces_are_named_in_place(tmp_path):
    run = make_run(tmp_path / "run", "wilson", [BASE], logs=False, pictures=False, config=False)
    page = page_of([run], tmp_path)
    assert "no TensorBoard logs in step-0" in page.text
    assert "No example pictures in the run folders of: wilson" in page.text
    assert "config.yaml is missing or unreadable" in page.text


def test_a_run_without_an_evaluated_step_is_no_crash(tmp_path):
    page = page_of([make_run(tmp_path / "run", "wilson", [])], tmp_path)
    assert "No step has been evaluated yet" in page.text


def test_a_lost_picture_is_an_empty_cell(tmp_path):
    run = make_run(tmp_path / "run", "supervised", [BASE])
    (run / "step-0" / "panels" / "00-prediction.png").unlink()
    page = page_of([run], tmp_path)
    head = next(i for i, row in enumerate(page.rows) if row and row[0] == "image")
    assert page.rows[head + 1] == ["", DASH, DASH, DASH, ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "results.json is missing"),
        ("{", "not valid JSON"),
        ("[]", "holds no results"),
        ('{"method": "wilson", "task": "2-2", "seed": 0, "steps": []}', "no entry 'protocol'"),
        ('{"method": "wilson", "task": "2-2", "protocol": "overlap", "seed": 0, "steps": [3]}', "not in the form"),
    ],
)
def test_what_is_no_run_folder_is_a_users_mistake(tmp_path, content, message):
    folder = tmp_path / "run"
    folder.mkdir()
    if content is not None:
        (folder / "results.json").write_text(content)
    with pytest.raises(UserError, match=message):
        report.write([folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_folder_of_runs_is_refused_with_their_names(three_runs, tmp_path):
    with pytest.raises(UserError, match="base, finetune, wilson"):
        report.write([three_runs[0].parent], tmp_path / "report.html")
    with pytest.raises(UserError, match="is not a folder"):
        report.write([tmp_path / "nowhere"], tmp_path / "report.html")
    with pytest.raises(UserError, match="no run folder was given"):
        report.write([], tmp_path / "report.html")


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


def test_many_classes_are_drawn_in_rows(tmp_path):
    names = ["background", *(f"class {number}" for number in range(60))]
    run = make_run(tmp_path / "run", "offline", [dict.fromkeys(names, 50.0)], logs=False, pictures=False)
    page = page_of([run], tmp_path)
    assert page.text.count("IoU (%)") == 3
    assert "class 59" in page.text


def test_panels_read_back_as_written(tmp_path):
    write_panels(tmp_path, OLD + NEW, True)
    document = json.loads((tmp_path / "panels.json").read_text(encoding="utf-8"))
    assert document["classes"] == OLD + NEW
    assert document["ids"] == [0, 1, 2, 3, 4]
    found = panels.read(tmp_path)
    assert [panel.name for panel in found.panels] == ["image <0>", "image <1>", "image <2>"]
    panel = found.panels[1]
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


def test_a_resumed_run_keeps_the_later_values(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    run = make_run(tmp_path / "run", "supervised", [BASE], logs=False)
    for value, iterations in ((1.0, range(10)), (2.0, range(5, 12))):
        writer = SummaryWriter(str(run / "step-0"), filename_suffix=f".{value}")
        for step in iterations:
            writer.add_scalar("loss/total", value, step)
        writer.close()
    iterations, values = read(run).steps[0].curves["loss/total"]
    assert iterations == list(range(12))
    assert values == [1.0] * 5 + [2.0] * 7


def course_of(tmp_path, name="run", steps=3, **options):
    """A run of 2 classes, then 1 each step, with the figures of a whole evaluation."""
    names = ["background", "cat", "dog", "cow", "<b>&sheep"]
    values = [
        dict(zip(names[: 3 + t], [90.0, 70.0, 60.0 - 10 * t, 50.0 - 5 * t, None], strict=False)) for t in range(steps)
    ]
    run = make_run(tmp_path / name, "wilson", values, task="2-1", logs=False, pictures=False, **options)
    document = json.loads((run / "results.json").read_text())
    for entry in document["steps"]:
        entry["miou_with_background"] = {"old": 11.1, "new": 12.2, "all": 13.3}
        entry["miou_without_background"] = {"old": 21.1, "new": 22.2, "all": 23.3}
        if entry["step"]:
            entry["localizer"] = {"miou": {"old": 31.1, "new": 32.2, "all": 33.3}}
    (run / "results.json").write_text(json.dumps(document))
    return run, document["steps"]


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
    text = steps.write(tmp_path, entries)
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


def test_means_and_the_localizer_have_a_table(tmp_path):
    page = page_of([course_of(tmp_path)[0]], tmp_path)
    assert ["", "with background", "without background", "localizer"] in page.rows
    rest = ["11.1", "12.2", "13.3", "21.1", "22.2", "23.3"]
    assert ["wilson, step 0", *rest, DASH, DASH, DASH] in page.rows
    assert ["wilson, step 1", *rest, "31.1", "32.2", "33.3"] in page.rows


def test_results_without_these_means_have_no_such_table(page):
    assert "without background" not in page.text


def test_a_confusion_matrix_reads_back_and_is_shown_after_the_last_step(tmp_path):
    run, _ = course_of(tmp_path)
    last = ["background", "cat", "dog", "cow", "<b>&sheep"]
    matrix = np.diag([90, 70, 60, 50, 0])
    matrix[1, 4] = 30
    (run / "step-1").mkdir()
    (run / "step-2").mkdir()
    confusion.write(run / "step-1", last[:4], torch.eye(4, dtype=torch.int64), 3)
    confusion.write(run / "step-2", last, torch.from_numpy(matrix), 4)
    found = confusion.read(run / "step-2")
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
        assert confusion.read(run / "step-2") is None
    assert "What is taken for what" not in page_of([run], tmp_path).text


def test_a_matrix_of_81_classes_has_all_names_and_no_figures(tmp_path):
    names = [f"class {number}" for number in range(81)]
    drawn = confusion.svg(confusion.Confusion(names, 61, np.full((81, 81), 7)))
    shown = Page(drawn).text.split("\n")
    assert all(sum(name == line.strip() for line in shown) == 2 for name in names)
    assert not [line for line in shown if line.strip() == "1"]
    assert confusion.size(confusion.Confusion(names, 61, np.eye(81))) < 16  # inches


def test_drawings_take_the_pages_colours(three_runs, tmp_path):
    text = report.write(three_runs, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in text
    body = text[text.index("<body>") :]
    for variable in ("--ink", "--muted", "--line", "--ground"):
        assert f"var({variable})" in body
        assert text.count(f"{variable}:") == 2  # light and dark
    assert drawing.INK not in body and drawing.GRID not in body


def test_methods_that_see_all_masks_take_no_prize(tmp_path):
    folders = [
        make_run(tmp_path / method, method, [BASE, after(value, value, value, value)], logs=False, pictures=False)
        for method, value in (("wilson", 50.0), ("finetune", 40.0), ("joint", 90.0))
    ]
    assert results.groups([read(folder) for folder in folders])[-1].best("old") == 50.0

"""Run folders as the report reads them, with figures of a test's choice, and the page made of them."""

import json
from html.parser import HTMLParser

import numpy as np
import yaml

from wilson import report
from wilson.report import panels

OLD = ["background", "cat", "dog"]
NEW = ["cow", "<b>&sheep"]
BASE = {"background": 90.0, "cat": 70.0, "dog": 60.0}
MINUS = "\N{MINUS SIGN}"
VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}


class Page(HTMLParser):
    """The texts, references, tables and images of a page; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.references: list[str] = []
        self.images: list[dict] = []
        self.tags: list[tuple[str, dict]] = []
        self.rows: list[list[str]] = []
        self.bold: set[tuple[str, str]] = set()
        self.text = ""
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

"""The table of papers: methods in rows, tasks and protocols in columns, old / new / all, means over seeds."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from wilson.report.reading import Run

FIGURES = ("old", "new", "all")
# What runs of one row may differ in: it is the column, the place, or what is averaged over
FREE = {"seed", "task", "protocol", "device", "recipe", "evaluate_every", "data.root", "data.workers", "data.step_root"}
# Task, protocol: method: old, new, all. Tables 1 to 3 of the paper (arXiv 2112.01882), mIoU in percent on VOC.
PUBLISHED: dict[tuple[str, str], dict[str, tuple[float, float, float]]] = {
    ("15-5", "disjoint"): {
        "cam": (69.3, 26.1, 59.4), "seam": (71.0, 33.1, 62.7), "ss": (71.6, 26.0, 61.5), "eps": (72.4, 38.5, 65.2),
        "wilson": (73.6, 43.8, 67.3), "wilson, all_labels True": (75.0, 46.0, 68.9),
    },
    ("15-5", "overlap"): {
        "cam": (69.9, 25.6, 59.7), "seam": (68.3, 31.8, 60.4), "ss": (72.2, 27.5, 62.1), "eps": (69.4, 34.5, 62.1),
        "wilson": (74.2, 41.7, 67.2), "wilson, all_labels True": (76.1, 45.6, 69.5),
    },
    ("10-10", "disjoint"): {
        "cam": (65.4, 41.3, 54.5), "seam": (65.1, 53.5, 60.6), "ss": (60.7, 25.7, 45.0), "eps": (64.2, 54.1, 60.6),
        "wilson": (64.5, 54.3, 60.8), "wilson, all_labels True": (69.5, 56.4, 64.2),
    },
    ("10-10", "overlap"): {
        "cam": (70.8, 44.2, 58.5), "seam": (67.5, 55.4, 62.7), "ss": (69.6, 32.8, 52.5), "eps": (69.0, 57.0, 64.3),
        "wilson": (70.4, 57.1, 65.0), "wilson, all_labels True": (73.6, 57.6, 66.7),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What runs of a row reached after the last step of a task, in percent, one value of each figure for each seed."""

    row: str
    task: str
    protocol: str
    values: dict[str, list[float]]

    @property
    def text(self) -> str:
        """`old / new / all`, each a mean, with the standard deviation of two or more seeds."""
        return " / ".join(_rounded(self.values[figure]) for figure in FIGURES)


def cells(runs: Sequence[Run]) -> list[Cell]:
    """Put runs that differ in their seed alone together, in the order of the runs."""
    found: dict[tuple[str, str, str], Cell] = {}
    for name, run in zip(row_names(runs), runs, strict=True):
        if not run.steps:
            continue
        cell = found.setdefault(
            (name, run.task, run.protocol), Cell(name, run.task, run.protocol, {figure: [] for figure in FIGURES})
        )
        for figure in FIGURES:
            value = run.steps[-1].miou[figure]
            if value is not None:
                cell.values[figure].append(value)
    return list(found.values())


def row_names(runs: Sequence[Run]) -> list[str]:
    """The method of each run, and the options in which runs of this method differ."""
    settings = [_flat(run.settings) for run in runs]
    names = []
    for run, own in zip(runs, settings, strict=True):
        others = [other for rival, other in zip(runs, settings, strict=True) if rival.method == run.method]
        keys = [key for key in own if key not in FREE and any(other.get(key) != own[key] for other in others)]
        usual = {key: Counter(str(other.get(key)) for other in others).most_common(1)[0][0] for key in keys}
        told = [f"{key} {own[key]}" for key in keys if str(own[key]) != usual[key]]
        names.append(", ".join([run.method, *told]))
    return names


def markdown(found: Iterable[Cell], published: bool = False) -> str:
    """The table in Markdown; with `published`, the figures of the paper stand below those of the same task."""
    found = list(found)
    tasks = list(dict.fromkeys(cell.task for cell in found))
    known = {(cell.task, cell.protocol) for cell in found}
    columns = sorted(known, key=lambda column: (tasks.index(column[0]), column[1]))  # protocols side by side
    lines = [["", *(f"{task} {protocol}" for task, protocol in columns)], ["---"] * (1 + len(columns))]
    texts = {(cell.row, (cell.task, cell.protocol)): cell.text for cell in found}
    rows = dict.fromkeys(cell.row for cell in found)
    lines += [[row, *(texts.get((row, column), "") for column in columns)] for row in rows]
    if published:
        for row in dict.fromkeys(row for column in columns for row in PUBLISHED.get(column, {})):
            values = [PUBLISHED.get(column, {}).get(row, ()) for column in columns]
            lines.append([f"{row} (published)", *(" / ".join(map(str, figures)) for figures in values)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def comma_separated(found: Iterable[Cell]) -> str:
    """The same as CSV: a line for each row, task and protocol, with means, standard deviations and numbers of seeds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["row", "task", "protocol", *(f"{f}{part}" for f in FIGURES for part in ("", " deviation")), "seeds"]
    )
    for cell in found:
        figures = []
        for figure in FIGURES:
            values = cell.values[figure]
            figures += [f"{mean(values):.2f}" if values else "", f"{stdev(values):.2f}" if len(values) > 1 else ""]
        writer.writerow([cell.row, cell.task, cell.protocol, *figures, len(cell.values["all"])])
    return text.getvalue()


def _rounded(values: Sequence[float]) -> str:
    if not values:
        return "-"
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{deviation}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat

"""Several steps in a row: how the classes of each step fare after every later one."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

from wilson.atomic import replacing
from wilson.report.reading import Step, step
from wilson.report.results import mean_iou
from wilson.report.text import percent
from wilson.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST = 3  # number of results that make a course; for two, old and new tell all


@dataclass(frozen=True)
class Course:
    """Mean IoU in percent after each step.

    Args:
        steps: numbers of the steps, in order.
        groups: classes that each step added, without background.
        values: one row per step: the mean over each group, None for groups not learned yet.
        all: mean over all classes of a step, background included.
    """

    steps: list[int]
    groups: list[list[str]]
    values: list[list[float | None]]
    all: list[float | None]

    @property
    def titles(self) -> list[str]:
        """A column's title for each group."""
        return [f"step {number}" for number in self.steps]


def course(steps: Sequence[Step]) -> Course:
    """Compute the course of a run.

    Args:
        steps: the results of the run, at least one; each holds the classes of the one before.
    """
    known = set(steps[0].classes[:1])
    groups = []
    for result in steps:
        groups.append([name for name in result.classes if name not in known])
        known |= set(groups[-1])
    values = [[mean_iou(result, group) for group in groups] for result in steps]
    return Course([result.step for result in steps], groups, values, [result.miou["all"] for result in steps])


def write(folder: RunFolder, results: Sequence[dict[str, Any]]) -> str:
    """Write `steps.csv` and `steps.png`.

    Args:
        folder: of the run.
        results: entries of results.json, at least one.

    Returns:
        The table as text.
    """
    from wilson.report.drawing import canvas, png

    found = course([step(entry) for entry in results])
    with replacing(folder.steps_table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["after step", *found.titles, "all"])
        for number, row in _rows(found):
            writer.writerow([number, *("" if value is None else f"{value:.2f}" for value in row)])
    with canvas(7.5, 3.6, layout="constrained") as figure:
        _draw(figure, found)
        png(figure, folder.steps_picture)
    return text(found)


def table(results: Sequence[dict[str, Any]]) -> str:
    """Format the table of a run as text; `results` are entries of results.json, at least one."""
    return text(course([step(entry) for entry in results]))


def text(found: Course) -> str:
    """Format a course as text, one line per step."""
    sizes = [f"{len(group)} class{'es' * (len(group) > 1)}" for group in found.groups]
    lines = [
        ["mIoU (%) of the", *found.titles, "all"],
        ["classes of", *sizes, "+ background"],
        *([f"after step {number}", *map(percent, row)] for number, row in _rows(found)),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def svg(found: Course) -> str:
    """Draw a course as an svg element."""
    from wilson.report import drawing

    with drawing.canvas(drawing.WIDTH, 3.2, layout="constrained") as figure:
        _draw(figure, found)
        return drawing.svg(figure, "Mean IoU of each step's classes after every step")


def _rows(found: Course) -> list[tuple[int, list[float | None]]]:
    rows = zip(found.steps, found.values, found.all, strict=True)
    return [(number, [*values, everything]) for number, values, everything in rows]


def _draw(figure: "Figure", found: Course) -> None:
    from wilson.report.drawing import BLUE, GREY, INK, ORANGE, SPARE

    ax = figure.subplots()
    style: dict[str, Any] = {"marker": "o", "markersize": 4, "clip_on": False}
    colours = cycle((BLUE, ORANGE, *SPARE, GREY))
    for number, (title, colour) in enumerate(zip(found.titles, colours, strict=False)):
        ax.plot(
            found.steps,
            _gaps([row[number] for row in found.values]),
            color=colour,
            label=f"classes of {title}",
            **style,
        )
    ax.plot(found.steps, _gaps(found.all), color=INK, linestyle=(0, (4, 2)), label="all", **style)
    ax.set_xticks(found.steps)
    ax.set_xlabel("after step")
    ax.set_ylabel("mIoU (%)")
    ax.set_ylim(0, 100)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", handlelength=1.6)


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]

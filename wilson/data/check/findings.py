"""The findings of a data set check, and their text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wilson.data.tasks import Task
from wilson.printing import printable

SHOWN = 20  # how many errors, and how many warnings, `render` prints


@dataclass(frozen=True)
class Problem:
    """Something wrong: its file, relative to the data set, and what it is."""

    file: str
    text: str


@dataclass(frozen=True)
class Split:
    """What one list holds.

    Attributes:
        name: name of the list.
        images: number of images.
        masks: number of images with a readable mask.
        class_images: number of images with each class, by mask id.
        class_pixels: number of mask pixels of each class, by mask id.
        steps: number of training images of each step of the task; empty without a task.
        as_published: whether these are the published numbers; None if none were published.
    """

    name: str
    images: int
    masks: int
    class_images: tuple[int, ...]
    class_pixels: tuple[int, ...]
    steps: tuple[int, ...]
    as_published: bool | None = None


@dataclass(frozen=True)
class Report:
    """What `check` found."""

    root: Path
    classes: tuple[str, ...]
    task: Task | None
    protocol: str
    splits: tuple[Split, ...]
    errors: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    named: str  # where the classes' names come from


def render(report: Report) -> str:
    """Format the report for a terminal."""
    lines = [f"{printable(report.root)}: {len(report.classes)} classes, background included ({report.named})"]
    header = ["list", "images", "masks"]
    if report.task is not None:
        header += [f"step {step}" for step in range(len(report.task.steps))]
        lines += [f"task {report.task.name}, {report.protocol}: the training images of each step are counted"]
    lines += [""]
    rows = [[split.name, split.images, split.masks, *split.steps] for split in report.splits]
    lines += _table([header, *rows])
    lines += [f"{split.name}: matches the published split sizes" for split in report.splits if split.as_published]
    header = ["id", "class", *(column for split in report.splits for column in (split.name, f"{split.name} %"))]
    rows = []
    for class_id, name in enumerate(report.classes):
        row: list[object] = [class_id, name]
        for split in report.splits:
            share = 100 * split.class_pixels[class_id] / max(1, sum(split.class_pixels))
            row += [split.class_images[class_id], f"{share:.1f}" if split.masks else "-"]
        rows.append(row)
    lines += ["", "images with each class, and its share of the labelled pixels in %", "", *_table([header, *rows])]
    for title, problems in (("error", report.errors), ("warning", report.warnings)):
        lines += ["", f"{len(problems)} {title}{'s' if len(problems) != 1 else ''}"]
        lines += [f"  {printable(problem.file)}: {printable(problem.text)}" for problem in problems[:SHOWN]]
        lines += [f"  ... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    # Words are aligned left, numbers right.
    words = [not all(row[column].replace(".", "").isdigit() for row in cells[1:]) for column in range(len(widths))]
    return [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in cells
    ]

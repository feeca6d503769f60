"""The outcomes of a grid of runs as a table, as the figures behind it, and as a plot."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from wilson.atomic import replacing
from wilson.report.text import percent

TABLE, FIGURES, RECORD, PICTURE = "table.md", "results.csv", "record.json", "plot.png"
GROUPS = ("old", "new", "all")


@dataclass(frozen=True)
class Outcome:
    """One run of a row: `entry` is the last of its results.json, `options` how the row differs from the grid's base."""

    row: str
    method: str
    seed: int
    entry: dict[str, Any]
    options: str = ""
    core_hours: float = 0.0

    def figure(self, name: str) -> float | None:
        """A mean IoU or the pixel accuracy, in percent."""
        return self.entry["pixel_accuracy"] if name == "pixel accuracy" else self.entry["miou"][name]


def write(folder: Path, outcomes: Sequence[Outcome], order: Sequence[str], command: str = "") -> str:
    """Write `table.md`, `results.csv`, `record.json` and `plot.png`.

    Args:
        folder: of the grid.
        outcomes: at least one.
        order: names of all rows; those without an outcome are left out.
        command: that runs the grid.

    Returns:
        The table.
    """
    rows = {name: [outcome for outcome in outcomes if outcome.row == name] for name in order}
    rows = {name: found for name, found in rows.items() if found}
    text = table(rows)
    with replacing(folder / TABLE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with replacing(folder / FIGURES) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        _write_figures(csv.writer(file), rows)
    record = {"command": command, "runs": [_recorded(outcome) for found in rows.values() for outcome in found]}
    with replacing(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _draw(folder / PICTURE, rows)
    return text


def table(rows: dict[str, list[Outcome]]) -> str:
    """One Markdown line per row: mean and standard deviation over its seeds."""
    columns = (*GROUPS, "pixel accuracy")
    lines = [f"| row | seeds | {' | '.join(columns)} |", "| --- " * (len(columns) + 2) + "|"]
    for name, found in rows.items():
        cells = [_cell(values(found, column)) for column in columns]
        lines.append(f"| {name} | {', '.join(str(outcome.seed) for outcome in found)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def values(found: Sequence[Outcome], name: str) -> list[float]:
    """A figure of each outcome that has it."""
    return [value for outcome in found if (value := outcome.figure(name)) is not None]


def _cell(of_seeds: list[float]) -> str:
    spread = f" ± {stdev(of_seeds):.1f}" if len(of_seeds) > 1 else ""
    return percent(mean(of_seeds) if of_seeds else None) + spread


def _write_figures(writer: Any, rows: dict[str, list[Outcome]]) -> None:
    classes = list(dict.fromkeys(name for found in rows.values() for outcome in found for name in outcome.entry["iou"]))
    writer.writerow(["row", "method", "seed", "step", *GROUPS, "pixel accuracy", *(f"iou {name}" for name in classes)])
    for name, found in rows.items():
        for outcome in found:
            figures = [outcome.figure(figure) for figure in (*GROUPS, "pixel accuracy")]
            figures += [outcome.entry["iou"].get(c) for c in classes]
            cells = ["" if value is None else f"{value:.2f}" for value in figures]
            writer.writerow([name, outcome.method, outcome.seed, outcome.entry["step"], *cells])


def _recorded(outcome: Outcome) -> dict[str, Any]:
    """A run in the record, from which tables can be made without the run."""
    entry = outcome.entry
    return {
        "row": outcome.row,
        "options": outcome.options,
        "method": outcome.method,
        "seed": outcome.seed,
        "step": entry["step"],
        "miou": entry["miou"],
        "pixel_accuracy": entry["pixel_accuracy"],
        "iou": entry["iou"],
        "images": entry.get("training", {}).get("images"),
        "core_hours": outcome.core_hours,
    }


def _draw(path: Path, rows: dict[str, list[Outcome]]) -> None:
    """Draw the means as bars; rows with several seeds get a dot for each seed and a line for the standard deviation."""
    from matplotlib.patches import Patch

    from wilson.report.drawing import ALL, INK, MUTED, NEW, OLD, canvas, png

    colours = dict(zip(GROUPS, (OLD, NEW, ALL), strict=True))
    thickness = 0.26
    with canvas(8.5, 0.9 + 0.52 * len(rows), layout="constrained") as figure:
        ax = figure.subplots()
        ax.grid(visible=False, axis="y")
        ax.grid(visible=True, axis="x")
        for place, found in enumerate(rows.values()):
            for number, group in enumerate(GROUPS):
                of_seeds = values(found, group)
                if not of_seeds:
                    continue
                y = place + (number - 1) * thickness
                ax.barh(y, mean(of_seeds), thickness * 0.9, color=colours[group])
                if len(of_seeds) > 1:
                    ax.errorbar(mean(of_seeds), y, xerr=stdev(of_seeds), color=INK, linewidth=1)
                    ax.plot(of_seeds, [y] * len(of_seeds), "o", color=INK, markersize=2)
                end = max(*of_seeds, mean(of_seeds) + stdev(of_seeds)) if len(of_seeds) > 1 else of_seeds[0]
                ax.text(end + 0.5, y, f"{mean(of_seeds):.1f}", va="center", fontsize=7.5, color=MUTED)
        ax.set_yticks(range(len(rows)), list(rows))
        ax.tick_params(axis="y", labelcolor=INK, length=0)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlim(left=0)
        ax.margins(x=0.06)
        ax.set_xlabel("mIoU (%)")
        handles = [Patch(color=colour, label=group) for group, colour in colours.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=1)
        png(figure, path)

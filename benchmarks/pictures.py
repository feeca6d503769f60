"""The figures of the CPU benchmarks as a table for machines, docs/benchmarks.csv, and two plots for the README."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

CSV, PICTURE = "benchmarks.csv", "images/benchmarks.png"
SHOWN = {  # the losses and the refinement that a step spends its time on
    "ngwp_focal_pool": "pooling",
    "localization_prior_loss": "LOC",
    "pseudo_label_loss": "pseudo-label loss",
    "pamr": "PAMR",
    "upsampled_cross_entropy": "upsampled\ncross-entropy",
}
IMPLEMENTATIONS = {"eager": "eager PyTorch", "compile": "torch.compile", "wilson": "wilson"}
HEADER = ["shapes", "op", "dtype", "implementation", "median ms", "peak extra MB"]


def rows(benchmarks: dict[str, dict[tuple[str, ...], dict]]) -> list[list[Any]]:
    """Of each grid's benchmarks (see `report.benchmarks`), one row for each op, dtype and implementation."""
    return [
        [grid, *key[1:], round(1e3 * record["stats"]["median"], 4), record["extra_info"]["peak extra MB"]]
        for grid, found in benchmarks.items()
        for key, record in found.items()
        if key[0] == "test_forward_and_backward"
    ]


def write(docs: Path, benchmarks: dict[str, dict[tuple[str, ...], dict]]) -> None:
    """Write both files into the folder of the documents."""
    figures = rows(benchmarks)
    with (docs / CSV).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *figures])
    draw(docs / PICTURE, figures)


def draw(path: Path, figures: list[list[Any]]) -> None:
    """Draw time and memory of the shown ops as shares of eager PyTorch's, on linear axes, float32, VOC's shapes."""
    from wilson.report.drawing import BLUE, GREY, INK, MUTED, ORANGE, canvas, png

    colours = dict(zip(IMPLEMENTATIONS, (GREY, ORANGE, BLUE), strict=True))
    of = {(op, name): (ms, mb) for grid, op, dtype, name, ms, mb in figures if (grid, dtype) == ("voc", "fp32")}
    thickness = 0.27
    with canvas(9, 3.9, layout="constrained") as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for part, (ax, title, unit) in enumerate(zip(panels, ("time", "peak extra memory"), ("ms", "MB"), strict=True)):
            ax.grid(visible=False, axis="y")
            ax.grid(visible=True, axis="x")
            for place, op in enumerate(SHOWN):
                for number, name in enumerate(IMPLEMENTATIONS):
                    value, y = of[op, name][part], place + (number - 1) * thickness
                    share = 100 * value / of[op, "eager"][part]
                    ax.barh(y, share, thickness * 0.9, color=colours[name], label=IMPLEMENTATIONS[name])
                    ax.text(share + 1.5, y, f"{value:.3g} {unit}", va="center", fontsize=7.5, color=MUTED)
            ax.set_title(f"{title}, % of eager PyTorch's")
            ax.set_yticks(range(len(SHOWN)), list(SHOWN.values()))
            ax.tick_params(axis="y", labelcolor=INK, length=0)
            ax.set_ylim(len(SHOWN) - 0.5, -0.5)
            ax.set_xlim(0, max(125, ax.get_xlim()[1]))
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles[:3], labels[:3], loc="outside upper left", ncols=3, handlelength=1)
        png(figure, path)

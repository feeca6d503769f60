"""Bars and curves as inline SVG, drawn by matplotlib."""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wilson import palette
from wilson.report.results import DASH, Group
from wilson.report.runs import Curve, Run

_INK, _MUTED, _GREY, _GRID = "#1f2430", "#6b7280", "#9ca3af", "#e5e7eb"
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's font
    "svg.hashsalt": "wilson",  # the same file from the same runs
    "text.parse_math": False,  # a class may be called $x$
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": _GRID,
    "xtick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.color": _MUTED,
    "ytick.left": False,
    "ytick.minor.left": False,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
_METHODS = {"wilson": "#2563eb", "finetune": "#f08c2e", "supervised": _GREY, "base": _GREY, "offline": "#4b5563"}
_SPARE = ("#0d9488", "#a855f7", "#dc2626", "#84a20f", "#0891b2", "#be185d", "#a16207", "#6366f1")
_TERMS = {"cls": "#f08c2e", "loc": "#2563eb", "enc": "#0d9488", "sss": "#a855f7", "seg": "#dc2626", "total": _INK}
_BEFORE = "after the first step"
_WIDTH = 11.0  # inches
_CLASSES_PER_ROW = 24
_POINTS = 200


def run_colours(runs: Sequence[Run]) -> list[str]:
    """One colour per run: its method's own for the first run of a method, spare ones for the others."""
    chosen: list[str] = []
    spare = 0
    for run in runs:
        colour = _METHODS.get(run.method)
        if colour is None or colour in chosen:
            colour = _SPARE[spare % len(_SPARE)]
            spare += 1
        chosen.append(colour)
    return chosen


def class_bars(group: Group, colours: dict[str, str]) -> str:
    """IoU of every class, one bar per run, with a tick where the class stood after the first step.

    Args:
        group: comparable results.
        colours: colour of each run by its label.

    Returns:
        An svg element.
    """
    rows = math.ceil(len(group.classes) / _CLASSES_PER_ROW)
    per_row = math.ceil(len(group.classes) / rows)
    with _figure(_WIDTH, 2.9 * rows, layout="constrained") as figure:
        axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
        for row, ax in enumerate(axes):
            channels = range(row * per_row, min((row + 1) * per_row, len(group.classes)))
            _bars(ax, group, colours, channels, per_row)
            _class_axis(ax, group, channels, per_row)
        handles, names = axes[0].get_legend_handles_labels()
        order = sorted(range(len(names)), key=lambda i: names[i] == _BEFORE)
        figure.legend(
            [handles[i] for i in order], [names[i] for i in order], loc="outside upper left", ncols=4, handlelength=1
        )
        return _svg(figure, "Intersection over union of every class")


def _bars(ax: Axes, group: Group, colours: dict[str, str], channels: range, slots: int) -> None:
    width = min(0.8 / len(group.results), 0.3)
    annotated = slots * len(group.results) <= 36  # more bars leave no room for figures
    unlabelled = {_BEFORE, *(result.label for result in group.results)}

    def label_once(text: str) -> str | None:
        if text not in unlabelled:
            return None
        unlabelled.remove(text)
        return text

    for number, result in enumerate(group.results):
        for place, channel in enumerate(channels):
            name = group.classes[channel]
            value = result.step.iou.get(name)
            before = result.first.iou.get(name) if result.first is not None else None
            x = place + width * (number - (len(group.results) - 1) / 2)
            height = value or 0
            ax.bar(x, height, width * 0.9, color=colours[result.label], label=label_once(result.label))
            if before is not None:
                ends = [x - width * 0.45, x + width * 0.45]
                ax.plot(ends, [before, before], color=_INK, linewidth=1.8, label=label_once(_BEFORE))
            if annotated or value is None:
                above = before if before is not None and height - 2 < before < height + 9 else height
                text = DASH if value is None else f"{value:.0f}"
                ax.text(x, max(above, height) + 1.5, text, ha="center", va="bottom", fontsize=8, color=_MUTED)


def _class_axis(ax: Axes, group: Group, channels: range, slots: int) -> None:
    """Names and colours of the classes below the bars, the new classes on a ground of their own."""
    class_colours = palette.distinct(len(group.classes))
    for place, channel in enumerate(channels):
        colour = [value / 255 for value in class_colours[channel]]
        ax.plot(place, -6, "s", color=colour, markersize=8, clip_on=False, markeredgecolor=_MUTED, markeredgewidth=0.5)
    new = [place for place, channel in enumerate(channels) if group.classes[channel] in group.new]
    if new:
        ax.axvspan(new[0] - 0.5, new[-1] + 0.5, color="#eff4ff", zorder=0)
        ax.text(new[0] - 0.45, 101, "new classes", color=_MUTED, fontsize=9, va="bottom")
    names = [group.classes[channel] for channel in channels]
    letters = _WIDTH * 72 / slots / 6.5  # that fit side by side: a letter is some 6.5 points wide
    if max(len(word) for name in group.classes for word in name.split(" ")) > letters:
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    else:
        ax.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
    ax.tick_params(axis="x", length=0, pad=16)
    ax.set_xlim(-0.5, slots - 0.5)
    ax.set_ylim(0, 100)
    ax.set_ylabel("IoU (%)")


def curves(found: dict[str, Curve]) -> str:
    """The loss terms of one step and, where it was evaluated on the way, its validation mIoU.

    Args:
        found: TensorBoard scalars by tag ("loss/...", "validation/miou_...").

    Returns:
        An svg element.
    """
    losses = {tag.removeprefix("loss/"): curve for tag, curve in found.items() if tag.startswith("loss/")}
    scores = {tag.removeprefix("validation/miou_"): c for tag, c in found.items() if tag.startswith("validation/miou_")}
    with _figure(_WIDTH, 2.7) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        figure.subplots_adjust(left=0.05, right=0.93, bottom=0.18, top=0.9, wspace=0.28)
        _loss_curves(left, losses)
        _score_curves(right, scores)
        return _svg(figure, "Training curves")


def _loss_curves(ax: Axes, losses: dict[str, Curve]) -> None:
    order = ["total", *_TERMS]
    spare = cycle(_SPARE)
    values = []
    for name in sorted(losses, key=lambda name: order.index(name) if name in order else len(order)):
        x, y = _thinned(losses[name])
        values += [value for value in y if value > 0]
        # a total of one term would hide that term
        style: dict[str, Any] = {"alpha": 0.55, "linestyle": (0, (4, 2))} if name == "total" and len(losses) > 1 else {}
        ax.plot(x, y, color=_TERMS.get(name) or next(spare), label=name.upper() if name != "total" else name, **style)
    logarithmic = bool(values) and max(values) > 30 * min(values)
    if logarithmic:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
    ax.set_title("loss terms (log scale)" if logarithmic else "loss terms")
    ax.set_xlabel("iteration")
    _legend_or_note(ax, "no loss was logged")


def _score_curves(ax: Axes, scores: dict[str, Curve]) -> None:
    for name, colour in (("all", _INK), ("old", "#2563eb"), ("new", "#f08c2e")):
        if name in scores:
            ax.plot(*scores[name], color=colour, marker="o", markersize=4, label=name)
    ax.set_title("validation mIoU (%)")
    ax.set_xlim(left=0)
    ax.set_ylim(0, 100)
    ax.set_xlabel("iteration")
    _legend_or_note(ax, "not evaluated during training")


def _legend_or_note(ax: Axes, note: str) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1.02), borderaxespad=0.4, handlelength=1.4)
    else:
        ax.text(0.5, 0.5, note, transform=ax.transAxes, ha="center", va="center", color=_MUTED)
        ax.set_xticks([])
        ax.set_yticks([])


def _thinned(curve: Curve) -> Curve:
    """At most some 200 points: means over runs of as many neighbouring iterations as that takes."""
    x, y = curve
    stride = math.ceil(len(x) / _POINTS) or 1
    pieces = range(0, len(x), stride)
    return [x[min(i + stride, len(x)) - 1] for i in pieces], [
        sum(y[i : i + stride]) / len(y[i : i + stride]) for i in pieces
    ]


@contextmanager
def _figure(width: float, height: float, **options: Any) -> Iterator[Figure]:
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), **options)


def _svg(figure: Figure, title: str) -> str:
    """The figure as an svg element that fills its parent's width."""
    file = io.StringIO()
    figure.patch.set_alpha(0)
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]  # the XML prologue has no place inside HTML
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # group names repeat from figure to figure; nothing refers to them
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg role="img" aria-label="{title}" \1>', svg, count=1)

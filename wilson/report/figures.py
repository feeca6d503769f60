"""Bars and curves as inline SVG, drawn by matplotlib."""

import math
from collections.abc import Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes

from wilson.pictures import palette
from wilson.report.drawing import (
    BLUE,
    DARK_GREY,
    GREY,
    GROUND,
    INK,
    MUTED,
    NEW,
    OLD,
    ORANGE,
    PURPLE,
    RED,
    SPARE,
    TEAL,
    WIDTH,
    canvas,
    svg,
)
from wilson.report.reading import Curve, Run
from wilson.report.results import Group
from wilson.report.text import DASH

_METHODS = {"wilson": BLUE, "finetune": ORANGE, "supervised": GREY, "base": GREY, "offline": DARK_GREY}
_TERMS = {"cls": ORANGE, "loc": BLUE, "enc": TEAL, "sss": PURPLE, "seg": RED, "total": INK}
_BEFORE = "after the first step"
_CLASSES_PER_ROW = 24
_POINTS = 200


def run_colours(runs: Sequence[Run]) -> list[str]:
    """One colour per run: its method's own for the first run of a method, spare ones for the others."""
    chosen: list[str] = []
    spare = 0
    for run in runs:
        colour = _METHODS.get(run.method)
        if colour is None or colour in chosen:
            colour = SPARE[spare % len(SPARE)]
            spare += 1
        chosen.append(colour)
    return chosen


def class_bars(group: Group, colours: dict[str, str]) -> str:
    """IoU of every class, one bar per run, with a tick at the IoU after the first step.

    Args:
        group: comparable results.
        colours: colour of each run by its label.

    Returns:
        An svg element.
    """
    rows = math.ceil(len(group.classes) / _CLASSES_PER_ROW)
    per_row = math.ceil(len(group.classes) / rows)
    with canvas(WIDTH, 2.9 * rows, layout="constrained") as figure:
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
        return svg(figure, "Intersection over union of every class")


def _bars(ax: Axes, group: Group, colours: dict[str, str], channels: range, slots: int) -> None:
    width = min(0.8 / len(group.results), 0.3)
    annotated = slots * len(group.results) <= 36  # more bars leave no room for numbers
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
                ax.plot(ends, [before, before], color=INK, linewidth=1.8, label=label_once(_BEFORE))
            if annotated or value is None:
                above = before if before is not None and height - 2 < before < height + 9 else height
                text = DASH if value is None else f"{value:.0f}"
                ax.text(x, max(above, height) + 1.5, text, ha="center", va="bottom", fontsize=8, color=MUTED)


def _class_axis(ax: Axes, group: Group, channels: range, slots: int) -> None:
    """Names and colours of the classes below the bars; the new classes have a ground of their own."""
    class_colours = palette.distinct(len(group.classes))
    for place, channel in enumerate(channels):
        colour = [value / 255 for value in class_colours[channel]]
        ax.plot(place, -6, "s", color=colour, markersize=8, clip_on=False, markeredgecolor=MUTED, markeredgewidth=0.5)
    new = [place for place, channel in enumerate(channels) if group.classes[channel] in group.new]
    if new:
        ax.axvspan(new[0] - 0.5, new[-1] + 0.5, color=GROUND, zorder=0)
        ax.text(new[0] - 0.45, 101, "new classes", color=MUTED, fontsize=9, va="bottom")
    names = [group.classes[channel] for channel in channels]
    letters = WIDTH * 72 / slots / 6.5  # that fit into a slot; a letter is about 6.5 points wide
    if max(len(word) for name in group.classes for word in name.split(" ")) > letters:
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    else:
        ax.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names])
    ax.tick_params(axis="x", length=0, pad=16)
    ax.set_xlim(-0.5, slots - 0.5)
    ax.set_ylim(0, 100)
    ax.set_ylabel("IoU (%)")


def curves(found: dict[str, Curve]) -> str:
    """The loss terms of one step and, if it was evaluated during training, its validation mIoU.

    Args:
        found: TensorBoard scalars by tag ("loss/...", "validation/miou_...", "validation/localizer_miou").

    Returns:
        An svg element.
    """
    scores = {tag.removeprefix("validation/miou_"): c for tag, c in found.items() if tag.startswith("validation/miou_")}
    if "validation/localizer_miou" in found:
        scores["localizer"] = found["validation/localizer_miou"]
    with canvas(WIDTH, 2.7) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        figure.subplots_adjust(left=0.05, right=0.93, bottom=0.18, top=0.9, wspace=0.28)
        _loss_curves(left, _terms(found))
        _score_curves(right, scores)
        return svg(figure, "Training curves")


def losses(found: dict[str, Curve]) -> str:
    """The loss terms of a step alone; arguments as for :func:`curves`."""
    with canvas(WIDTH * 0.6, 2.4) as figure:
        axes = figure.subplots()
        figure.subplots_adjust(left=0.09, right=0.85, bottom=0.2, top=0.88)
        _loss_curves(axes, _terms(found))
        return svg(figure, "Loss terms")


def _terms(found: dict[str, Curve]) -> dict[str, Curve]:
    return {tag.removeprefix("loss/"): curve for tag, curve in found.items() if tag.startswith("loss/")}


def _loss_curves(ax: Axes, losses: dict[str, Curve]) -> None:
    order = ["total", *_TERMS]
    spare = cycle(SPARE)
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
    for name, colour in (("all", INK), ("old", OLD), ("new", NEW), ("localizer", TEAL)):
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
        ax.text(0.5, 0.5, note, transform=ax.transAxes, ha="center", va="center", color=MUTED)
        ax.set_xticks([])
        ax.set_yticks([])


def _thinned(curve: Curve) -> Curve:
    """Thin a curve to at most 200 points by averaging neighbouring iterations."""
    x, y = curve
    stride = math.ceil(len(x) / _POINTS) or 1
    pieces = range(0, len(x), stride)
    return [x[min(i + stride, len(x)) - 1] for i in pieces], [
        sum(y[i : i + stride]) / len(y[i : i + stride]) for i in pieces
    ]

"""The confusion matrix of a step: stored as numbers and as a picture, and shown in the report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wilson.atomic import replacing
from wilson.run_folder import StepFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ANNOTATED = 24  # with more classes, the cells have no room for numbers


@dataclass(frozen=True)
class Confusion:
    """Pixels by true class (rows) and predicted class (columns).

    Args:
        classes: C names by channel, background first.
        old: number of channels of earlier steps, background included; 1 at step 0.
        pixels: integers (C, C).
    """

    classes: Sequence[str]
    old: int
    pixels: np.ndarray


def write(folder: StepFolder, classes: Sequence[str], matrix: Any, old: int) -> None:
    """Write `confusion.json` and `confusion.png`.

    Args:
        folder: of the step; exists.
        classes: see :class:`Confusion`.
        matrix: integers (C, C), a tensor or an array.
        old: see :class:`Confusion`.
    """
    pixels = np.asarray(matrix)
    document = {"classes": list(classes), "old": old, "pixels": pixels.tolist()}
    with replacing(folder.confusion) as temporary:
        temporary.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    draw(folder.confusion_picture, classes, pixels, old)


def read(folder: StepFolder) -> Confusion | None:
    """Read the numbers that `write` left in a folder; None if there are no readable ones."""
    try:
        document = json.loads(folder.confusion.read_text(encoding="utf-8"))
        classes, pixels = [str(name) for name in document["classes"]], np.array(document["pixels"], dtype=np.int64)
        return Confusion(classes, int(document["old"]), pixels) if pixels.shape == (len(classes),) * 2 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def draw(path: Path, classes: Sequence[str], matrix: Any, old: int) -> None:
    """Write the picture alone to a PNG file; the other arguments are those of `write`."""
    from wilson.report.drawing import canvas, png  # loads matplotlib, which reading and writing numbers do not need

    confusion = Confusion(classes, old, np.asarray(matrix))
    with canvas(size(confusion), size(confusion), layout="constrained") as figure:
        _draw(figure, confusion)
        png(figure, path)


def svg(confusion: Confusion) -> str:
    """Draw the matrix as an svg element."""
    from wilson.report import drawing

    with drawing.canvas(size(confusion), size(confusion), layout="constrained") as figure:
        _draw(figure, confusion)
        return drawing.svg(figure, "Confusion matrix")


def _cell(confusion: Confusion) -> float:
    """Side of a cell in inches."""
    return min(max(9 / len(confusion.classes), 0.14), 0.5)


def size(confusion: Confusion) -> float:
    """Width and height of the picture in inches."""
    margin = 0.6 + 0.075 * max(map(len, confusion.classes))  # for the names
    return len(confusion.classes) * _cell(confusion) + margin


def _draw(figure: "Figure", confusion: Confusion) -> None:
    """Draw the shares of each true class's pixels; a class without pixels has an empty row."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgba

    from wilson.report.drawing import DEEP_BLUE, INK, MUTED

    pixels, names = confusion.pixels.astype(np.float64), list(confusion.classes)
    shares = pixels / np.maximum(pixels.sum(1, keepdims=True), 1)
    count, points = len(names), 72 * _cell(confusion)
    ax = figure.subplots()
    # from transparent, so that an empty cell has the colour of the page, light or dark
    colours = LinearSegmentedColormap.from_list("shares", [to_rgba(DEEP_BLUE, 0.0), to_rgba(DEEP_BLUE, 1.0)])
    root = PowerNorm(0.5, vmin=0, vmax=1)  # keeps a few per cent visible
    ax.imshow(shares, cmap=colours, norm=root, interpolation="none")
    if count <= _ANNOTATED:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                ink = "#ffffff" if share > 0.25 else INK
                figure_size = min(9.0, 0.38 * points)
                ax.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=figure_size, color=ink)
    if 1 < confusion.old < count:
        for line in (ax.axhline, ax.axvline):
            line(confusion.old - 0.5, color=MUTED, linewidth=1)
    name_size = min(10.0, 0.8 * points)
    upright = max(map(len, names)) * 0.6 * name_size > points  # wider than a cell
    turned: dict[str, Any] = {"rotation": 90} if upright else {}
    ax.set_xticks(range(count), names, fontsize=name_size, **turned)
    ax.set_yticks(range(count), names, fontsize=name_size)
    ax.tick_params(length=0, labelcolor=INK)
    ax.set_xlabel("predicted")
    ax.set_ylabel("truth")
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(True)

"""What all drawings share: one style, and matplotlib figures as inline SVG or as files."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from wilson.atomic import replacing

# The colours of all drawings. The page shows the first four in its own shades, light or dark.
INK, MUTED, GRID, GROUND = "#1f2430", "#6b7280", "#e5e7eb", "#eff4ff"
BLUE, ORANGE, TEAL, PURPLE, RED = "#2563eb", "#f08c2e", "#0d9488", "#a855f7", "#dc2626"
GREY, DARK_GREY, DEEP_BLUE = "#9ca3af", "#4b5563", "#1d4ed8"
SPARE = (TEAL, PURPLE, RED, "#84a20f", "#0891b2", "#be185d", "#a16207", "#6366f1")
OLD, NEW, ALL = BLUE, ORANGE, GREY  # the classes that bars and lines stand for
WIDTH = 11.0  # inches, of a drawing as wide as the page

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", GROUND: "--ground"}  # the page's, light or dark
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's font
    "svg.hashsalt": "wilson",  # the same file from the same runs
    "text.parse_math": False,  # a class may be called $x$
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.left": False,
    "ytick.minor.left": False,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@contextmanager
def canvas(width: float, height: float, **options: Any) -> Iterator[Figure]:
    """An empty figure in the style of the report; draw and save it inside the block. Sizes are in inches."""
    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), **options)


def svg(figure: Figure, title: str) -> str:
    """Turn a figure into an svg element that fills its parent's width and has the page's colours."""
    file = io.StringIO()
    figure.patch.set_alpha(0)
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]  # the XML prologue has no place inside HTML
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # group names repeat from figure to figure; nothing refers to them
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(f": {colour}", f": var({variable})")
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg role="img" aria-label="{title}" \1>', svg, count=1)


def png(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file, on white, so that it is readable on any page."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, facecolor="white")

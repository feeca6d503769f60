"""The report: one HTML file that shows what one or several runs learned.

- `reading` reads run folders, `panels` writes and reads the example pictures in them.
- `results` says which runs are comparable and computes their figures, `text` formats figures.
- `figures` draws bars and curves, `confusion` the matrix of a step, `steps` the course of several steps, `grid` the
  outcomes of a grid of runs, all in the style of `drawing`. `gallery` lays out the example pictures.
- `page` is the page, `style` its style sheet.
"""

from collections.abc import Sequence
from pathlib import Path

from wilson.atomic import replacing


def write(runs: Sequence[Path], out: Path) -> Path:
    """Write one self-contained HTML file that compares runs.

    The page says which pieces a run folder lacks (configuration, TensorBoard logs, panels).

    Args:
        runs: run folders, at least one, in the order of the page; each needs a results.json.
        out: the file to write; its folder is created, an older file is replaced.

    Returns:
        The file written.

    Raises:
        UserError: no run was given, or a folder is no run folder; nothing is written then.
    """
    from wilson.report.page import page  # loads matplotlib and tensorboard, which training does not need
    from wilson.report.reading import read_all

    text = page(read_all(runs))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out

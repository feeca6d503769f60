"""The report: one HTML file that shows what one or several runs learned.

- `runs` reads run folders, `panels` writes and reads the example pictures in them;
- `results` says which runs are comparable, and by what figures;
- `figures` draws bars and curves, `confusion` the matrix of a step, `steps` the course of several, all in the look of
  `drawing`; `examples` lays out the pictures;
- `page` is the page, `style` its style sheet.
"""

from collections.abc import Sequence
from pathlib import Path

from wilson.atomic import replacing


def write(runs: Sequence[Path], out: Path) -> Path:
    """Write one self-contained HTML file that compares runs.

    Pieces a run folder lacks (configuration, TensorBoard logs, panels) are named in place on the page.

    Args:
        runs: run folders, at least one, in the order of the page; each needs a results.json.
        out: the file to write; its folder is made, an older file is replaced.

    Returns:
        The file written.

    Raises:
        UserError: no run was given, or a folder is no run folder; nothing is written then.
    """
    from wilson.report.page import page  # matplotlib and tensorboard, which training need not load
    from wilson.report.reading import read_all

    text = page(read_all(runs))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out

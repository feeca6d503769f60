"""The command results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Results:
    """Print the table of papers from runs: old / new / all after the last step, means over seeds."""

    what: Positional[Literal["table"]]
    """table: methods in rows, tasks and protocols in columns."""
    runs: Positional[tuple[Path, ...]]
    """Folders of runs. Those that differ in their seed alone make a row together."""
    published: bool = False
    """Add the figures of the paper for the same tasks."""
    csv: Path | None = None
    """Write the table to this file, too, as CSV."""

    def __call__(self) -> int:
        from wilson.atomic import replacing
        from wilson.report.reading import read_all
        from wilson.report.table import cells, comma_separated, markdown

        found = cells(read_all(self.runs))
        print(markdown(found, self.published), end="")
        if self.csv is not None:
            with replacing(self.csv) as temporary:
                temporary.write_text(comma_separated(found), encoding="utf-8")
        return 0

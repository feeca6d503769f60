"""The command report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Report:
    """Compare runs in one self-contained HTML file."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs."""
    out: Path = Path("report.html")
    """The file to write."""

    def __call__(self) -> int:
        from wilson import report

        print(report.write(self.runs, self.out))
        return 0

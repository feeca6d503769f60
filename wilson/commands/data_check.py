"""The command data check."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from wilson.config import ProtocolName


@dataclass(frozen=True)
class DataCheck:
    """Read a data set and report what is there and what is wrong; exit status 1 on errors."""

    root: Positional[Path]
    """Folder in the layout of VOC or COCO."""
    task: str | None = None
    """Task, as in 15-5, to count the images of its steps."""
    protocol: ProtocolName = "overlap"
    """Which images belong to a step."""

    def __call__(self) -> int:
        from wilson.data.check import check, render

        result = check(self.root, self.task, self.protocol)
        print(render(result))
        return 1 if result.errors else 0

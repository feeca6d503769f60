"""The command ablate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wilson.errors import UserError


@dataclass(frozen=True)
class Ablate:
    """Run a grid of methods and options from one base step per seed, and write one table and one plot."""

    grid: Path
    """YAML file with base (options of every run, nested as in config.yaml), seeds, and rows (name: what it changes)."""
    out: Path | None = None
    """Folder of the runs, table.md, results.csv and plot.png; runs/TIME-ablation by default. A folder that is not empty
    is refused."""
    resume: bool = False
    """Continue the grid in the folder: finished rows are kept, an unfinished one continues where it stopped."""

    def __call__(self) -> int:
        from wilson import distributed
        from wilson.runs.ablation import ablate
        from wilson.runs.folder import timed_folder

        if self.out is None and distributed.may_restart():
            raise UserError("torchrun --max-restarts: give --out FOLDER, so that restarted processes find the grid")
        print(ablate(self.grid, self.out or timed_folder("ablation"), resume=self.resume))
        return 0

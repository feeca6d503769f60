"""The command run."""

from __future__ import annotations

from dataclasses import dataclass, field

from .options import Folder, Options, Where


@dataclass(frozen=True)
class Run:
    """Train all steps of a task, evaluate after each, and write the report."""

    config: Options
    where: Folder = field(default_factory=Where)

    def __call__(self) -> int:
        from wilson.runs.run import run

        out = self.where.folder(self.config)
        run(self.config, out, resume=self.where.resume, overwrite=self.where.overwrite)
        return 0

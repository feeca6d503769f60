"""The command train."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from .options import Folder, Options, Where


@dataclass(frozen=True)
class Train:
    """Train one step of a task."""

    config: Options
    where: Folder = field(default_factory=Where)
    number: Annotated[int, arg(name="step")] = 0
    """Number of the step, from 0."""
    start: Annotated[Path | None, arg(aliases=("--from",))] = None
    """Checkpoint of the step before (RUN/step-T/checkpoint.pt); none for step 0. torchrun reads --start as an option of
    its own, so use --from there."""

    def __call__(self) -> int:
        from wilson.runs.run import run

        out = self.where.folder(self.config)
        where = {"resume": self.where.resume, "overwrite": self.where.overwrite}
        run(self.config, out, steps=[self.number], start=self.start, **where)
        return 0

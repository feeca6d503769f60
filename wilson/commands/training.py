"""Commands that train: demo, run, train."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from wilson.config import RECIPES, Config

Options = Annotated[Config, arg(name="")]  # options of a configuration, without a prefix


@dataclass(frozen=True)
class Where:
    """Where a run writes."""

    out: Path | None = None
    """Folder of the results; runs/TIME-TASK-METHOD by default. A folder that is not empty is refused."""
    resume: bool = False
    """Continue the run in the folder where it stopped."""
    overwrite: bool = False
    """Remove the run in the folder first."""


Folder = Annotated[Where, arg(name="")]


@dataclass(frozen=True)
class Demo:
    """Train the base step, fine-tuning and WILSON on the built-in data set, and compare them in one report."""

    where: Folder = field(default_factory=Where)
    seed: int = 0
    """Seed of data, initialisation, order and augmentation."""

    def __call__(self) -> int:
        from wilson.demo import demo
        from wilson.folder import default_folder

        config = replace(RECIPES["demo"], seed=self.seed)
        out = self.where.out or default_folder(replace(config, method="wilson"), suffix="demo")
        report = demo(config, out, resume=self.where.resume, overwrite=self.where.overwrite)
        print(f"open {report}")
        return 0


@dataclass(frozen=True)
class Run:
    """Train all steps of a task, evaluate after each, and write the report."""

    config: Options
    where: Folder = field(default_factory=Where)

    def __call__(self) -> int:
        from wilson.folder import default_folder
        from wilson.run import run

        out = self.where.out or default_folder(self.config)
        run(self.config, out, resume=self.where.resume, overwrite=self.where.overwrite)
        return 0


@dataclass(frozen=True)
class Train:
    """Train one step of a task."""

    config: Options
    where: Folder = field(default_factory=Where)
    number: Annotated[int, arg(name="step")] = 0
    """Number of the step, from 0."""
    start: Path | None = None
    """Checkpoint of the step before (RUN/step-T/checkpoint.pt); none for step 0."""

    def __call__(self) -> int:
        from wilson.folder import default_folder
        from wilson.run import run

        out = self.where.out or default_folder(self.config)
        where = {"resume": self.where.resume, "overwrite": self.where.overwrite}
        run(self.config, out, steps=[self.number], start=self.start, **where)
        return 0

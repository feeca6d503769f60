"""Commands that train: demo, run, train."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from wilson.config import RECIPES, Config
from wilson.errors import UserError

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

    def folder(self, config: Config) -> Path:
        """The folder of a run; under `torchrun --max-restarts` one that a restarted process finds again."""
        from wilson import distributed
        from wilson.folder import default_folder

        if self.out is None and distributed.may_restart():
            raise UserError("torchrun --max-restarts: give --out FOLDER, so that restarted processes find the run")
        return self.out or default_folder(config)


Folder = Annotated[Where, arg(name="")]


@dataclass(frozen=True)
class Demo:
    """Train the base step, fine-tuning and WILSON on the built-in data set, and compare them in one report."""

    where: Folder = field(default_factory=Where)
    seed: int = 0
    """Seed of data, initialisation, order and augmentation."""

    def __call__(self) -> int:
        from wilson import distributed
        from wilson.demo import demo
        from wilson.folder import default_folder

        if distributed.launched():
            raise UserError("the demo runs in one process; torchrun is for wilson run and wilson train")
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
        from wilson.run import run

        out = self.where.folder(self.config)
        run(self.config, out, resume=self.where.resume, overwrite=self.where.overwrite)
        return 0


@dataclass(frozen=True)
class Train:
    """Train one step of a task."""

    config: Options
    where: Folder = field(default_factory=Where)
    number: Annotated[int, arg(name="step")] = 0
    """Number of the step, from 0."""
    start: Annotated[Path | None, arg(aliases=("--from",))] = None
    """Checkpoint of the step before (RUN/step-T/checkpoint.pt); none for step 0. torchrun takes --start for an option
    of its own: there it is --from."""

    def __call__(self) -> int:
        from wilson.run import run

        out = self.where.folder(self.config)
        where = {"resume": self.where.resume, "overwrite": self.where.overwrite}
        run(self.config, out, steps=[self.number], start=self.start, **where)
        return 0

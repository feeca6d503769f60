"""A grid of runs that differ in a few options, from one base step per seed.

A YAML file describes the grid:

base:              options of every run, nested as in config.yaml; the others come from its `recipe` (default: voc)
seeds: [0, 1, 2]   one base step each
rows:              what each row changes; a row with `seeds` runs only these
  wilson: {}
  no prior: {losses: {prior: none}, seeds: [0]}

The folder holds one run for each base step and for each row and seed, and table.md, results.csv, record.json and
plot.png, which are updated after every row. The record holds all figures, with core-hours and options.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wilson import distributed
from wilson.checkpoint import Checkpoint
from wilson.config import RECIPES, Config, changed, read_yaml
from wilson.config.validation import short
from wilson.distributed import choose_device
from wilson.errors import UserError
from wilson.report.grid import TABLE, Outcome, write
from wilson.run_folder import STEP, RunFolder, StepFolder
from wilson.training import cost

from .checks import check_batch, check_classes, check_maps, check_single_class
from .experiment import Experiment
from .folder import claimed
from .run import run

FIXED = ("recipe", "task", "protocol", "seed", "model", "base")  # a row cannot change these: the base step uses them


@dataclass(frozen=True)
class Row:
    """One line of the table: a configuration and the seeds of its runs."""

    name: str
    config: Config
    seeds: tuple[int, ...]
    options: str = ""  # what it changes, as on the command line

    def folder(self, seed: int) -> str:
        """Name of the run's folder."""
        return f"{''.join(c if c.isalnum() or c in '-.' else '_' for c in self.name)}-seed{seed}"


def ablate(grid: Path, out: Path, *, resume: bool = False) -> Path:
    """Run a grid: for each seed the base step, then one row after the other.

    Args:
        grid: the YAML file that describes the runs.
        out: the folder.
        resume: keep what `out` holds: finished runs stay, an unfinished one continues where it stopped.

    Returns:
        Path of the table.

    Raises:
        UserError: a mistake that the user can fix; mistakes in the YAML file are found before anything runs.
    """
    base, rows = read(grid)
    command = f"wilson ablate --grid {grid} --out {out}"
    with distributed.session(choose_device(base.config.device)), ExitStack() as ours:
        resume = resume or distributed.anywhere(distributed.restarted())
        with distributed.main_first():
            steps = {row.name: check(row) for row in rows}
            if distributed.is_main():
                ours.enter_context(claimed(out, resume=resume, overwrite=False))
        outcomes: list[Outcome] = []
        for seed in base.seeds:
            folder = run(replace(base.config, seed=seed), out / base.folder(seed), steps=[0], resume=True)
            start = RunFolder(folder).step(0).checkpoint
            outcomes.append(outcome(base, seed, start))
            for row in rows:
                if seed not in row.seeds:
                    continue
                offline = row.config.method == "offline"
                folder = run(
                    replace(row.config, seed=seed),
                    out / row.folder(seed),
                    steps=steps[row.name],
                    start=None if offline else start,
                    resume=True,
                )
                outcomes.append(outcome(row, seed, RunFolder(folder).step(steps[row.name][-1]).checkpoint))
                if distributed.is_main():
                    print(write(out, outcomes, [base.name, *(row.name for row in rows)], command), flush=True)
    return out / TABLE


def outcome(row: Row, seed: int, path: Path) -> Outcome:
    """The outcome of a run, from its last checkpoint."""
    saved = Checkpoint(path)
    steps = [StepFolder(folder) for folder in RunFolder(path.parents[1]).path.glob(f"{STEP}*")]
    hours = round(sum(map(cost.read, steps)), 5)
    return Outcome(row.name, saved.config.method, seed, saved.results[-1], row.options, hours)


def check(row: Row) -> list[int]:
    """The steps of a row after the base step; UserError if the row cannot run."""
    try:
        experiment = Experiment.open(row.config)
        steps = [step for step in experiment.steps() if step or row.config.method == "offline"]
        check_single_class(experiment, steps)
        for step in (0, *steps):
            dataset = experiment.training_set(step)
            check_batch(step, dataset, row.config.for_step(step))
            check_classes(experiment, step, dataset)
            check_maps(dataset)
    except UserError as error:
        raise UserError(f"row '{row.name}': {error}") from error
    if not steps:
        raise UserError(f"row '{row.name}': task {row.config.task} has a base step alone; choose one with more steps")
    return steps


def read(path: Path) -> tuple[Row, list[Row]]:
    """Read the base step and the rows of a grid; UserError if the file is malformed."""
    where = f"grid {path}"
    try:
        grid = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file; give a YAML file with base, seeds and rows") from None
    except UserError as error:
        raise UserError(f"grid {error}") from error
    if not isinstance(grid, dict) or not grid.keys() <= {"base", "seeds", "rows"} or not grid.get("rows"):
        found = list(grid) if isinstance(grid, dict) else grid
        raise UserError(f"{where}: expected base, seeds and rows with one row or more, got {short(found)}")
    options = _mapping(grid.get("base"), f"{where}: base")
    name = options.get("recipe", "voc")
    if name not in list(RECIPES):
        raise UserError(f"{where}: base.recipe: expected {' or '.join(RECIPES)}, got {short(name)}")
    base = changed(RECIPES[name], options, _under(f"{where}: base"))
    seeds = _seeds(grid.get("seeds", [base.seed]), base, f"{where}: seeds")
    rows = []
    for title, options in _mapping(grid["rows"], f"{where}: rows").items():
        title = " ".join(str(title).split())
        place = f"{where}: rows.{title}"
        changes = dict(_mapping(options, place))
        own = _seeds(changes.pop("seeds", list(seeds)), base, f"{place}.seeds")
        if wrong := [key for key in changes if key in FIXED] or [seed for seed in own if seed not in seeds]:
            raise UserError(
                f"{place}: {wrong[0]} is that of the base step, which all rows share; change it in base or seeds"
            )
        rows.append(Row(title, changed(base, changes, _under(place)), own, " ".join(_flags(changes))))
    folders = [row.folder(0) for row in [Row("base", base, seeds), *rows]]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise UserError(f"{where}: two rows, or a row and the base step, have the folder {twice[0]}; rename one")
    return Row("base", base, seeds), rows


def _flags(changes: dict[str, Any], group: str = "") -> list[str]:
    """Nested options as on the command line."""
    flags = []
    for name, value in changes.items():
        if isinstance(value, dict):
            flags += _flags(value, f"{group}{name}.")
        elif isinstance(value, bool):
            flags.append(f"--{group}{'' if value else 'no-'}{name.replace('_', '-')}")
        else:
            values = value if isinstance(value, list) else [value]
            flags.append(f"--{group}{name.replace('_', '-')} {shlex.join(map(str, values))}")
    return flags


def _under(place: str) -> Callable[[str], str]:
    return lambda option: f"{place}.{option}"


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    """The options of a part of the grid; a part without any is None in YAML."""
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{where}: expected options with their values, got {short(value)}")
    return value or {}


def _seeds(values: Any, base: Config, where: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: expected a list of different seeds, got {short(values)}")
    seeds = tuple(changed(base, {"seed": value}, lambda _: where).seed for value in values)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: expected a list of different seeds, got {short(values)}")
    return seeds

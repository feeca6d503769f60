"""A grid of runs that differ in a few options, from one base step per seed.

A YAML file describes the grid:

base:              options of every run, nested as in config.yaml; the others come from its `recipe` (default: voc)
seeds: [0, 1, 2]   one base step each
rows:              what each row changes; a row with `seeds` runs only these
  wilson: {}
  no prior: {losses: {prior: none}, seeds: [0]}

The folder holds one run for each base step and for each row and seed, and table.md, results.csv and plot.png, which are
updated after every row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from wilson import distributed
from wilson.checkpoint import Checkpoint
from wilson.config import RECIPES, Config, from_dict, to_dict
from wilson.distributed import choose_device
from wilson.errors import UserError
from wilson.report.grid import TABLE, Outcome, write
from wilson.run_folder import RunFolder

from .checks import check_batch, check_single_class
from .experiment import Experiment
from .folder import claim_folder
from .run import run

FIXED = ("recipe", "task", "protocol", "seed", "model", "base")  # a row cannot change these: the base step uses them


@dataclass(frozen=True)
class Row:
    """One line of the table: a configuration and the seeds of its runs."""

    name: str
    config: Config
    seeds: tuple[int, ...]

    def folder(self, seed: int) -> str:
        """Name of the run's folder."""
        return f"{''.join(c if c.isalnum() or c in '-.' else '_' for c in self.name)}-seed{seed}"


def ablate(recipe: Path, out: Path, *, resume: bool = False) -> Path:
    """Run a grid: for each seed the base step, then one row after the other.

    Args:
        recipe: the YAML file that describes the grid.
        out: the folder.
        resume: keep what `out` holds: finished runs stay, an unfinished one continues where it stopped.

    Returns:
        Path of the table.

    Raises:
        UserError: a mistake that the user can fix; mistakes in the YAML file are found before anything runs.
    """
    base, rows = read(recipe)
    with distributed.session(choose_device(base.config.device)):
        resume = resume or distributed.anywhere(distributed.restarted())
        with distributed.main_first():
            steps = {row.name: check(row) for row in rows}
            if distributed.is_main():
                claim_folder(out, resume=resume, overwrite=False)
        outcomes: list[Outcome] = []
        for seed in base.seeds:
            folder = run(replace(base.config, seed=seed), out / base.folder(seed), steps=[0], resume=True)
            start = RunFolder(folder).step(0).checkpoint
            outcomes.append(outcome(base.name, seed, start))
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
                outcomes.append(outcome(row.name, seed, RunFolder(folder).step(steps[row.name][-1]).checkpoint))
                if distributed.is_main():
                    print(write(out, outcomes, [base.name, *(row.name for row in rows)]), flush=True)
    return out / TABLE


def outcome(row: str, seed: int, path: Path) -> Outcome:
    """The outcome of a run, from its last checkpoint."""
    saved = Checkpoint(path)
    return Outcome(row, saved.config.method, seed, saved.results[-1])


def check(row: Row) -> list[int]:
    """The steps of a row after the base step; UserError if the row cannot run."""
    try:
        experiment = Experiment.open(row.config)
        steps = [step for step in experiment.steps() if step or row.config.method == "offline"]
        check_single_class(experiment, steps)
        for step in (0, *steps):
            check_batch(step, experiment.training_set(step), row.config.for_step(step))
    except UserError as error:
        raise UserError(f"row '{row.name}': {error}") from error
    if not steps:
        raise UserError(f"row '{row.name}': task {row.config.task} has a base step alone; choose one with more steps")
    return steps


def read(path: Path) -> tuple[Row, list[Row]]:
    """Read the base step and the rows of a grid; UserError if the file is malformed."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"grid {path}: no such file; give a YAML file with base, seeds and rows") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"grid {path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(recipe, dict) or not recipe.keys() <= {"base", "seeds", "rows"} or not recipe.get("rows"):
        found = ", ".join(map(str, recipe)) if isinstance(recipe, dict) else type(recipe).__name__
        raise UserError(f"grid {path}: expected base, seeds and rows with one row or more, got {found or 'nothing'}")
    options = dict(recipe.get("base") or {})
    name = options.get("recipe", "voc")
    if name not in RECIPES:
        raise UserError(f"grid {path}: base.recipe: expected {' or '.join(RECIPES)}, got '{name}'")
    base = changed(RECIPES[name], options, f"grid {path}: base")
    seeds = _seeds(recipe.get("seeds", [base.seed]), f"grid {path}: seeds")
    rows = []
    for title, options in recipe["rows"].items():
        where = f"grid {path}: rows.{title}"
        changes = dict(options or {})
        own = _seeds(changes.pop("seeds", list(seeds)), f"{where}.seeds")
        if wrong := [key for key in changes if key in FIXED] or [seed for seed in own if seed not in seeds]:
            raise UserError(
                f"{where}: {wrong[0]} is that of the base step, which all rows share; change it in base or seeds"
            )
        rows.append(Row(str(title), changed(base, changes, where), own))
    folders = [row.folder(0) for row in [Row("base", base, seeds), *rows]]
    if twice := [folder for folder in folders if folders.count(folder) > 1]:
        raise UserError(f"grid {path}: two rows, or a row and the base step, have the folder {twice[0]}; rename one")
    return Row("base", base, seeds), rows


def changed(config: Config, changes: dict[str, Any], where: str) -> Config:
    """Change some options of a configuration; UserError for an option that does not exist or cannot have the value."""
    return from_dict(_merged(to_dict(config), changes, Config, where))


def _merged(values: dict[str, Any], changes: dict[str, Any], kind: type, where: str) -> dict[str, Any]:
    if not isinstance(changes, dict):
        raise UserError(f"{where}: expected options with their values, got '{changes}'")
    hints = get_type_hints(kind)
    values = dict(values)
    for key, value in changes.items():
        if key not in values:
            near = get_close_matches(str(key), values, n=1)
            raise UserError(f"{where}: no option {key}" + (f"; did you mean {near[0]}?" if near else ""))
        if isinstance(values[key], dict):
            values[key] = _merged(values[key], value, hints[key], f"{where}.{key}")
        else:
            values[key] = _fitting(value, hints[key], f"{where}.{key}")
    return values


def _fitting(value: Any, hint: Any, where: str) -> Any:
    """Check a value against its option's type (a word of a list, a number, a list, None if allowed) and convert it."""
    kinds = get_args(hint) if get_origin(hint) not in (tuple, None) and not _words(hint) else (hint,)
    for kind in kinds:
        if value in _words(kind) or (value is None and kind is type(None)):
            return value
        if kind is float and not isinstance(value, bool):
            try:
                return float(value)  # YAML takes 1e-3 for text
            except (TypeError, ValueError):
                continue
        if get_origin(kind) is tuple and isinstance(value, (list, tuple)):
            return tuple(value)
        if kind in (bool, int, str) and type(value) is kind:
            return value
    expected = ", ".join(", ".join(_words(kind)) or getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise UserError(f"{where}: expected {expected.replace('NoneType', 'null')}, got {value!r}")


def _words(hint: Any) -> tuple[str, ...]:
    arguments = get_args(hint)
    return arguments if arguments and all(isinstance(word, str) for word in arguments) else ()


def _seeds(values: Any, where: str) -> tuple[int, ...]:
    good = isinstance(values, Sequence) and values and all(type(v) is int and v >= 0 for v in values)
    if not good or len(set(values)) < len(values):
        raise UserError(f"{where}: expected a list of different seeds of at least 0, got {values!r}")
    return tuple(values)

"""The folder of a run: claim it, check it against a configuration, and write configuration, command and results."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wilson import config as configuration
from wilson import distributed
from wilson.atomic import SUFFIX, remove_leftovers, replacing
from wilson.config import Config
from wilson.errors import UserError
from wilson.run_folder import STEP, RunFolder, StepFolder

from .lock import alone

LONGEST = 60  # letters of a task in the name of a folder
# On resuming, these may differ, as they do not change what is learned,
MAY_DIFFER = ("device", "data.workers", "evaluate_every")
# and these, as they only say where something is.
PLACES = (
    "data.root", "data.step_root", "data.labels", "data.saliency", "data.prior", "data.regions", "data.similarity",
    "data.negatives", "model.weights",
)  # fmt: skip
RESTART = 60.0  # seconds in which a process that torchrun has replaced lets go of the folder


def default_folder(config: Config, suffix: str | None = None) -> Path:
    """Where a run writes by default: runs/TIME-TASK-METHOD, with a suffix instead of METHOD if one is given."""
    task = "".join(c if c.isalnum() or c in "-," else "_" for c in config.task)
    task = task if len(task) <= LONGEST else f"{task[:LONGEST]}..."  # file systems allow 255 bytes
    return timed_folder(f"{task}-{suffix or config.method}")


def timed_folder(name: str) -> Path:
    """A folder named by the current time: runs/TIME-NAME."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


@contextmanager
def prepared(
    out: Path,
    config: Config,
    data: dict[str, Any] | None = None,
    *,
    resume: bool,
    overwrite: bool,
    always: bool = False,
) -> Iterator[RunFolder]:
    """Claim a run's folder and write the configuration there; on resuming, check it against the one in the folder.

    Args:
        out: the folder.
        config: of the run.
        data: what the images are known by; the data set may move, but must stay the same. None is not checked.
        resume, overwrite: see :func:`claimed`.
        always: compare the data even if no place has moved, for folders whose files come and go.

    Raises:
        UserError: the folder is not empty or in use, or, on resuming, is of another configuration or data set.
    """
    with claimed(out, resume=resume, overwrite=overwrite) as folder:
        if resume:
            remove_leftovers(out)
            if folder.config.exists():
                check_same(folder, config, data, always)
        with replacing(folder.config) as temporary:
            configuration.save(config, temporary)
        if data is not None:
            with replacing(folder.data) as temporary:
                temporary.write_text(json.dumps(data, indent=2))
        if not folder.command.exists():
            with replacing(folder.command) as temporary:
                temporary.write_text(shlex.join(["wilson", *sys.argv[1:]]) + "\n")
        yield folder


@contextmanager
def claimed(out: Path, *, resume: bool, overwrite: bool) -> Iterator[RunFolder]:
    """Create a folder for results, and keep other processes out of it while the block runs.

    Args:
        out: the folder.
        resume: keep what it holds. Without it, what a run left that failed in its first epoch is removed.
        overwrite: remove what it holds, if runs wrote all of it.

    Raises:
        UserError: it is a file, is in use, is not empty with neither option, or holds other files that would go.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; choose one")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder with --out")
    folder = RunFolder(out)

    def held() -> list[Path]:
        return [path for path in out.iterdir() if path != folder.lock] if out.exists() else []

    def check() -> None:
        if overwrite and (others := [path.name for path in held() if not _ours(path, folder)]):
            raise UserError(
                f"{out} holds files that no run wrote ({others[0]}); nothing was removed; use another --out"
            )
        if not (resume or overwrite) and held() and not nothing_trained(out):
            raise UserError(f"{out} is not empty; use --resume, --overwrite, or another --out")

    if not folder.lock.exists():
        check()  # a folder that is none of a run gets no lock
    out.mkdir(parents=True, exist_ok=True)
    with alone(folder.lock, patience=RESTART if distributed.restarted() else 0):
        check()
        for path in [] if resume else held():  # to be overwritten, or left by a run that failed in its first epoch
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield folder


def read_config(path: Path) -> Config:
    """Read the configuration of a run; UserError if the file is damaged."""
    try:
        return configuration.from_dict(configuration.read_yaml(path))
    except UserError as error:
        raise UserError(
            f"{path} is not the configuration of a run of this version ({error}); remove this file alone, and --resume "
            f"goes on with the options given, which must be those of the run"
        ) from error


def nothing_trained(out: Path) -> bool:
    """Whether a run was begun in a folder and no epoch of it was completed, so that there is nothing to lose."""
    folder = RunFolder(out)
    complete = any(path.exists() for path in (folder.results, folder.model, folder.added))
    if complete or not folder.config.is_file() or not all(map(folder.holds, out.iterdir())):
        return False
    steps = map(StepFolder, out.glob(f"{STEP}*"))
    return all(step.tells_of_training(path) for step in steps for path in step.path.rglob("*") if path.is_file())


def _ours(path: Path, folder: RunFolder) -> bool:
    """Whether a run or a demo writes a file or folder of this name."""
    return folder.holds(path) or path.name in ("base", "finetune", "wilson") or path.suffix == SUFFIX


def check_same(folder: RunFolder, config: Config, data: dict[str, Any] | None, always: bool = False) -> None:
    """Raise a UserError if a run would resume with options or images that change what it learns."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in values.items():
            items.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
        return items

    def settled(config: Config) -> dict[str, Any]:  # with the warm-up that None stands for
        return flat({**asdict(config), "base": asdict(config.for_step(0)), "step": asdict(config.for_step(1))})

    old, new = settled(read_config(folder.config)), settled(config)
    changed = [key for key in new if old[key] != new[key]]
    moved = [key for key in changed if key in PLACES and _is_place(old[key]) and _is_place(new[key])]
    free = {*moved, *MAY_DIFFER} - ({"evaluate_every"} if config.keep_best else set())  # which decides what is the best
    differing = [key for key in changed if key not in free]
    places = f"{moved[0]} moved from {old[moved[0]]} to {new[moved[0]]}, but " if moved else ""
    if always:  # first, as the settings may follow the images
        _check_data(folder, data or {}, places)
    if differing:
        key = differing[0]
        raise UserError(
            f"{folder.path} was run with {key} {old[key]!r}, not {new[key]!r}"
            + (f" (and {len(differing) - 1} more differ)" if len(differing) > 1 else "")
            + "; resume with the same options, or use another --out"
        )
    if moved:
        _check_data(folder, data or {}, places)


def _check_data(folder: RunFolder, data: dict[str, Any], places: str) -> None:
    """Raise a UserError if these are not the images of the run; `places` begins it and says what has moved."""
    before = _known(folder.data)
    if other := [part for part in data if part in before and before[part] != data[part]]:
        raise UserError(
            f"{folder.path}: {places}the {other[0]}{' there' if places else ''} are not those of the run "
            f"({_counts(before[other[0]], data[other[0]])}); give the same "
            + ("data set" if places else "ones, or use another --out")
        )


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and value not in ("hub", "none", "synthetic")


def _known(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _counts(before: Any, now: Any) -> str:
    counts = [len(value) if isinstance(value, list) else value.get("count") for value in (before, now)]
    return f"{counts[0]} then, {counts[1]} now" if counts[0] != counts[1] else "other names or classes"


def write_results(folder: RunFolder, config: Config, steps: list[dict[str, Any]]) -> None:
    """Write results.json."""
    only_base = config.method != "offline" and [entry["step"] for entry in steps] == [0]
    document = {
        "method": "base" if only_base else config.method,
        "task": config.task,
        "protocol": config.protocol,
        "seed": config.seed,
        "steps": steps,
    }
    with replacing(folder.results) as temporary:
        temporary.write_text(json.dumps(document, indent=2))

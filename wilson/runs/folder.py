"""The folder of a run: claim it, check it against a configuration, and write configuration, command and results."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wilson import config as configuration
from wilson.atomic import SUFFIX, remove_leftovers, replacing
from wilson.config import Config
from wilson.errors import UserError
from wilson.run_folder import RunFolder

MAY_DIFFER = {"device", "workers", "evaluate_every"}  # on resuming: they do not change what is learned


def default_folder(config: Config, suffix: str | None = None) -> Path:
    """Where a run writes by default: runs/TIME-TASK-METHOD, with a suffix instead of METHOD if one is given."""
    task = "".join(c if c.isalnum() or c in "-," else "_" for c in config.task)
    return timed_folder(f"{task}-{suffix or config.method}")


def timed_folder(name: str) -> Path:
    """A folder named by the current time: runs/TIME-NAME."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


def prepare_folder(out: Path, config: Config, *, resume: bool, overwrite: bool) -> None:
    """Create the run's folder and write the configuration; on resuming, check it against the one in the folder.

    Raises:
        UserError: the folder is not empty, or, on resuming, is of another configuration.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; choose one")
    claim_folder(out, resume=resume, overwrite=overwrite)
    if resume:
        remove_leftovers(out)
    folder = RunFolder(out)
    if resume and folder.config.exists():
        check_same(read_config(folder.config), config, out)
    with replacing(folder.config) as temporary:
        configuration.save(config, temporary)
    if not folder.command.exists():
        with replacing(folder.command) as temporary:
            temporary.write_text(shlex.join(["wilson", *sys.argv[1:]]) + "\n")


def read_config(path: Path) -> Config:
    """Read the configuration of a run; UserError if the file is damaged."""
    try:
        return configuration.from_dict(configuration.read_yaml(path))
    except UserError as error:
        raise UserError(
            f"{path} is not the configuration of a run of this version ({error}); use --overwrite, or another --out"
        ) from error


def claim_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Create a folder for results.

    Args:
        out: the folder.
        resume: keep what it holds.
        overwrite: remove what it holds, if runs wrote all of it.

    Raises:
        UserError: it is a file, is not empty with neither option, or holds other files that would be removed.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder with --out")
    if overwrite and out.exists():
        others = [p.name for p in out.iterdir() if not _ours(p, RunFolder(out))]
        if others:
            raise UserError(
                f"{out} holds files that no run wrote ({others[0]}); nothing was removed; use another --out"
            )
        shutil.rmtree(out)
    if not resume and out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; use --resume, --overwrite, or another --out")
    out.mkdir(parents=True, exist_ok=True)


def _ours(path: Path, folder: RunFolder) -> bool:
    """Whether a run or a demo writes a file or folder of this name."""
    return folder.holds(path) or path.name in ("base", "finetune", "wilson") or path.suffix == SUFFIX


def check_same(saved: Config, config: Config, out: Path) -> None:
    """Raise a UserError if a run would resume with options that change what it learns."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in values.items():
            items.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
        return items

    old, new = flat(asdict(saved)), flat(asdict(config))
    differing = [key for key in new if old[key] != new[key] and key.split(".")[-1] not in MAY_DIFFER]
    if differing:
        key = differing[0]
        raise UserError(
            f"{out} was run with {key} {old[key]!r}, not {new[key]!r}"
            + (f" (and {len(differing) - 1} more differ)" if len(differing) > 1 else "")
            + "; resume with the same options, or use another --out"
        )


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

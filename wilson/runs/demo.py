"""The demo: base step, fine-tuning and WILSON on the built-in data set, and one report that compares them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from wilson import report
from wilson.config import Config
from wilson.run_folder import RunFolder

from .folder import claimed
from .run import run

METHODS = ("finetune", "wilson")


def demo(config: Config, out: Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train one base step, then the second step of its task by both methods, and write the report.

    Args:
        config: of the runs; its method is not used.
        out: folder for `base`, `finetune`, `wilson` and `report.html`.
        resume: continue where a demo in `out` stopped.
        overwrite: remove what `out` holds first.

    Returns:
        Path of the report.
    """
    with claimed(out, resume=resume, overwrite=overwrite) as folder:
        base = run(config, out / "base", steps=[0], resume=resume)
        for method in METHODS:
            start = RunFolder(base).step(0).checkpoint
            run(replace(config, method=method), out / method, steps=[1], start=start, resume=resume)  # type: ignore[arg-type]
        return report.write([out / name for name in ("base", *METHODS)], folder.report)

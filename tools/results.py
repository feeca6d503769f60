"""Writes the tables of docs/results.md anew from the records of grids in docs/results/.

    python tools/results.py

A record is the `record.json` that `wilson ablate` writes. In the page, a table stands between two marks,

    <!-- results animals-*.json -->
    <!-- /results -->

and holds the runs of all records that the pattern names: a line for each row, with mean and standard deviation over its
seeds, the difference of the mIoU of all classes to the row wilson on the same seeds, with its 95 % confidence interval
(paired t), and the core-hours of a run. Needs scipy.
"""

import json
import re
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import ttest_rel

DOCS = Path(__file__).parents[1] / "docs"
MARKED = re.compile(r"(<!-- results (\S+) -->\n).*?(<!-- /results -->)", re.DOTALL)
COLUMNS = ("row", "seeds", "old", "new", "all", "pixel accuracy", "all, to wilson", "core-hours", "options")
AGAINST = "wilson"


def main() -> None:
    page = DOCS / "results.md"
    page.write_text(renewed(page.read_text(encoding="utf-8"), DOCS / "results"), encoding="utf-8")


def renewed(text: str, folder: Path) -> str:
    """The text with all tables made from the records of a folder; ValueError where a pattern finds none."""

    def made(mark: re.Match[str]) -> str:
        if not (files := sorted(folder.glob(mark[2]))):
            raise ValueError(f"{folder / mark[2]}: no such record")
        runs = [run for file in files for run in json.loads(file.read_text(encoding="utf-8"))["runs"]]
        return f"{mark[1]}{table(runs)}{mark[3]}"

    return MARKED.sub(made, text)


def table(runs: list[dict]) -> str:
    """A Markdown line for each row, in the order of the first record."""
    rows: dict[str, dict[int, dict]] = {}
    for run in runs:
        rows.setdefault(run["row"], {})[run["seed"]] = run
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    for name, found in rows.items():
        cells = [spread([run["miou"][group] for run in found.values()]) for group in ("old", "new", "all")]
        cells.append(spread([run["pixel_accuracy"] for run in found.values()]))
        cells.append("" if name in (AGAINST, "base") else difference(found, rows.get(AGAINST, {})))
        cells.append(f"{mean(run['core_hours'] for run in found.values()):.2f}")
        options = next(iter(found.values()))["options"]
        cells.append(f"`{options}`" if options else "")
        lines.append(f"| {name} | {', '.join(map(str, sorted(found)))} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float | None]) -> str:
    """Mean and standard deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{mean(known):.1f}" + (f" ± {stdev(known):.1f}" if len(known) > 1 else "")


def difference(found: dict[int, dict], others: dict[int, dict]) -> str:
    """Of the mIoU of all classes, over the seeds that both rows have."""
    seeds = sorted(found.keys() & others.keys())
    if not seeds:
        return ""
    ours, theirs = ([runs[seed]["miou"]["all"] for seed in seeds] for runs in (found, others))
    apart = f"{mean(ours) - mean(theirs):+.1f}"
    if len(seeds) == 1:
        return apart
    low, high = ttest_rel(ours, theirs).confidence_interval()
    return f"{apart} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()

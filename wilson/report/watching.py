"""How a run of `wilson add` goes, or went, as HTML for a page that watches its folder."""

from __future__ import annotations

import json
from collections import defaultdict
from datetime import timedelta
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from wilson.pictures.inline import url
from wilson.report import added, figures
from wilson.report.reading import curves
from wilson.run_folder import RunFolder, StepFolder

COLUMNS = 4  # pseudo-labels of a photograph, the first and the newest among them


def finished(run: RunFolder, name: str) -> str:
    """How a class was learned: tables and pictures, before and after."""
    values = json.loads(run.added.read_text(encoding="utf-8"))
    return f"<h2>{escape(name)} is learned</h2>{''.join(added.results(run, values))}"


def running(run: RunFolder, name: str) -> str:
    """How far the run is, what it learns from, and its losses."""
    head, far = f"<h2>Learning {escape(name)}</h2>", _progress(run.step(1))
    if not far:
        return f"{head}<p>Opening the model and the photographs.</p><progress></progress>{so_far(run)}"
    left = timedelta(seconds=round(far["seconds_left"]))
    text = f"Epoch {far['epoch']} of {far['epochs']}, about {left} left."
    bar = f'<progress value="{far["iteration"]}" max="{far["iterations"]}"></progress>'
    return f"{head}<p>{text}</p>{bar}{so_far(run)}"


def so_far(run: RunFolder) -> str:
    """The pseudo-labels that the model learns from, as they become better, and the losses."""
    step = run.step(1)
    return _pseudo_labels(step) + _losses(step, sum(log.stat().st_size for log in step.logs()))


def stamp(run: RunFolder) -> str:
    """Changes whenever there is something new to tell of a run."""
    return str(_progress(run.step(1)).get("iteration"))


def _progress(step: StepFolder) -> dict[str, Any]:
    try:
        return json.loads(step.progress.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


@lru_cache(maxsize=1)
def _losses(step: StepFolder, written: int) -> str:
    """The losses, drawn anew once the log has grown."""
    found = curves(step) if written else {}
    return f'<div class="chart">{figures.losses(found)}</div>' if found else ""


def _pseudo_labels(step: StepFolder) -> str:
    """A row for each photograph, from its first pseudo-labels to its newest."""
    rows: defaultdict[str, list[Path]] = defaultdict(list)
    for path in sorted(step.pseudo_labels.glob("*-*.jpg")):
        rows[path.stem.split("-")[0]].append(path)
    if not rows:
        return ""
    length = min(map(len, rows.values()))  # the newest ones are being written
    places = sorted({round(place * (length - 1) / (COLUMNS - 1)) for place in range(COLUMNS)})
    shown = [[paths[place] for place in places] for paths in rows.values()]
    head = "".join(f"<th>iteration {int(path.stem.split('-')[1])}</th>" for path in shown[0])
    cells = [[f'<td><img alt="pseudo-labels" src="{url(path)}"></td>' for path in paths] for paths in shown]
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    lead = "<p>What the model learns from: pseudo-labels of your photographs, which become better.</p>"
    return f'{lead}<table class="panels"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'

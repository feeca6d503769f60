"""The page of `wilson add`: before and after side by side, what was chosen, and how it went."""

import json
from html import escape
from pathlib import Path
from typing import Any

from wilson.atomic import replacing
from wilson.pictures import palette
from wilson.pictures.inline import url
from wilson.report import figures
from wilson.report.frame import document
from wilson.report.reading import curves
from wilson.report.text import DASH, percent
from wilson.run_folder import RunFolder

_GROUPS = {"old": "old classes", "new": "new classes", "all": "all classes"}


def write(folder: RunFolder) -> None:
    """Write the report of a run of `wilson add` from its added.json, pictures and log."""
    values = json.loads(folder.added.read_text(encoding="utf-8"))
    with replacing(folder.report) as temporary:
        temporary.write_text(page(folder, values), encoding="utf-8")


def page(folder: RunFolder, values: dict[str, Any]) -> str:
    """The whole page; it refers to nothing outside itself."""
    new = values["classes"][values["old"] :]
    title = f"{', '.join(new)} added to {values['model']}"
    sections = (
        *results(folder, values),
        _plan(values),
        _training(folder),
        _use(folder, values),
    )
    lead = """The model learned from photographs that show the new classes, without masks and without the data that it
learned from before. Two questions matter: does it find the new classes where they are and only there, and does it still
say the same of everything else?"""
    return document(title, lead, sections)


def results(folder: RunFolder, values: dict[str, Any]) -> tuple[str, str, str]:
    """The sections on how it went: tables, and pictures before and after."""
    return _held_out(values), _masks(values), _pictures(folder, values)


def _held_out(values: dict[str, Any]) -> str:
    found = values.get("held_out")
    if not found:
        return """<h2>How it went</h2><p class="note">No photograph was held out, as no class has ten of them. Look at
the pictures, which the model has learned from, and at photographs of your own.</p>"""
    advice = "".join(f"<p>{escape(line)}</p>" for line in found.get("advice", ()))
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="figure">{of["images"]}</td><td class="figure">{percent(of["recall"])}'
        f'</td><td class="figure">{percent(of["precision"])}</td></tr>'
        for name, of in found["classes"].items()
    )
    return f"""<h2>How it went</h2>
<p>Asked of {found["images"]} photographs that were held out, each seen whole, as <code>wilson predict</code> shows it.
A class is found in a photograph where the model gives it {found.get("appears", 0.5):g} % of the pixels or more.
Recall: of those that show the class, the share in which it is found. Precision: of those in which it is found, the
share that shows it. Neither says how good the outlines are: look at the pictures for that. Outside of the new classes,
the model says what it said before on <b>{percent(found["agreement"])} %</b> of the pixels.</p>{advice}
<div class="scroll"><table class="data"><thead><tr><th>new class</th><th class="figure">photographs</th>
<th class="figure">recall, %</th><th class="figure">precision, %</th></tr></thead><tbody>{rows}</tbody></table></div>"""


def _masks(values: dict[str, Any]) -> str:
    if "after" not in values:
        return ""
    rows = "".join(
        f"<tr><td>{title}</td>"
        + "".join(f'<td class="figure">{percent(values[when]["miou"][group])}</td>' for when in ("before", "after"))
        + "</tr>"
        for group, title in _GROUPS.items()
    )
    classes = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f'<td class="figure">{percent(values[when]["iou"][name])}</td>' for when in ("before", "after"))
        + "</tr>"
        for name in values["classes"]
    )
    head = '<th class="figure">before</th><th class="figure">after</th>'
    return f"""<h2>With masks</h2>
<p>Mean IoU in percent on the validation images. The pixels of new classes count as wrong before, as whatever the old
model says there is wrong.</p>
<div class="scroll"><table class="data"><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody>
<tbody><tr><th colspan="3">class by class</th></tr>{classes}</tbody></table></div>"""


def _pictures(folder: RunFolder, values: dict[str, Any]) -> str:
    pictures = folder.pictures
    try:
        index = json.loads(folder.pictures_index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    names, colours = values["classes"], palette.distinct(len(values["classes"]))
    shown = sorted({label for row in index for kind in ("before", "after") for label in row[f"{kind}_classes"]})
    chips = "".join(
        f'<span class="chip"><i style="background:rgb{colours[label]}"></i>{escape(names[label])}</span>'
        for label in shown
    )
    cells = "".join(
        f"<tr><td>{_image(pictures / row['before'])}</td><td>{_image(pictures / row['after'])}</td></tr>"
        f'<tr><td class="name" colspan="2">{escape(row["name"])}</td></tr>'
        for row in index
    )
    which = "held out" if values.get("held_out") else "learned from"
    return f"""<h2>Before and after</h2>
<p>Photographs that were {which}, as the model saw them before and sees them now.</p>
<div class="chips">{chips}</div>
<table class="panels" style="max-width:760px"><thead><tr><th>before</th><th>after</th></tr></thead>
<tbody>{cells}</tbody></table>"""


def _image(path: Path) -> str:
    try:
        return f'<img alt="" src="{url(path)}">'
    except OSError:
        return DASH


def _plan(values: dict[str, Any]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in values["plan"])
    return f"<h2>What was done, and why</h2><ul>{items}</ul>"


def _training(folder: RunFolder) -> str:
    found = curves(folder.step(1))
    if not found:
        return ""
    measured = any(tag.startswith("validation/") for tag in found)
    chart = figures.curves(found) if measured else figures.losses(found)
    return f"""<h2>Training</h2>
<p>The loss terms: <code>cls</code>, are the classes in the photographs; <code>loc</code>, does the localizer of the new
classes know the old ones; <code>enc</code>, do the features stay; after a warm-up also <code>sss</code>, does the
localizer agree with itself, and <code>seg</code>, does the model learn what the localizer sees.</p>
<div class="chart">{chart}</div>"""


def _use(folder: RunFolder, values: dict[str, Any]) -> str:
    path = escape(str(folder.path / values["written"]))
    builder = escape(values.get("builder") or "")
    command, argument = (f" --builder {builder}", f', builder="{builder}"') if builder else ("", "")
    return f"""<h2>How to use it</h2>
<pre>wilson predict photo.jpg --checkpoint {path}{command}</pre>
<p>In Python: <code>wilson.load("{path}"{argument}).predict("photo.jpg")</code>.</p>"""

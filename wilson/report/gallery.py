"""The section of example pictures: image | localizer | pseudo-label | predictions of the runs | truth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from wilson.pictures import palette
from wilson.pictures.inline import TYPES, url
from wilson.report.panels import Panel, Panels
from wilson.report.reading import Run, Step
from wilson.report.text import DASH

_ROWS = 12


@dataclass(frozen=True)
class _Source:
    """One step of one run that has panels."""

    label: str
    run: Run
    step: Step
    panels: Panels

    def panel(self, name: str) -> Panel | None:
        """The pictures of an image; None if there are none."""
        return next((panel for panel in self.panels.panels if panel.name == name), None)


@dataclass(frozen=True)
class _Column:
    """One kind of picture of one step; class maps are shown with sharp pixels."""

    title: str
    detail: str
    source: _Source
    picture: Callable[[Panel], Path | None]
    smooth: bool = False


def section(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """The section, one table per task.

    Args:
        runs: at least one.
        labels: the runs' short names.

    Returns:
        HTML.
    """
    parts = ""
    for task in dict.fromkeys(run.task for run in runs):
        members = [(run, label) for run, label in zip(runs, labels, strict=True) if run.task == task]
        sources = _sources(members)
        if sources:
            parts += _legend(sources) + _table(sources)
        lacking = [label for run, label in members if label not in {source.label for source in sources}]
        if lacking:
            parts += f'<p class="note">No example pictures in the run folders of: {escape("; ".join(lacking))}.</p>'
    return f"""<h2>Examples</h2>
<p>The model was not trained on these images. The localizer, trained from image-level labels, shows roughly where each
class is; colours blend where it is unsure. Its output is merged with the old model's into the pseudo-label, which
teaches the segmentation model at the coarse resolution of the features. Compare the predictions with the truth on the
right.</p>
{parts}"""


def _sources(members: Sequence[tuple[Run, str]]) -> list[_Source]:
    """The last step of every run; before them the first step, if a run kept its pictures."""
    last, first = [], []
    for run, label in members:
        found = [_Source(label, run, step, step.panels) for step in run.steps if step.panels and step.panels.panels]
        last += found[-1:]
        first += [source for source in found[:-1] if source.step.step == 0]
    if any(source.step.step == 0 for source in last):
        return last
    return first[:1] + last


def _legend(sources: Sequence[_Source]) -> str:
    """The classes' colours, the old classes before the new ones where the pictures show both."""
    lists = sorted((source.panels.classes for source in sources), key=len)
    classes = lists[-1]
    colours = palette.distinct(len(classes))

    def chips(channels: range) -> str:
        return "".join(
            f'<span class="chip"><i style="background:rgb{colours[channel]}"></i>{escape(classes[channel])}</span>'
            for channel in channels
        )

    known = max((len(names) for names in lists if len(names) < len(classes)), default=0)
    text = chips(range(known or len(classes)))
    if known:
        text = f"<strong>old</strong>{text}<strong>new</strong>{chips(range(known, len(classes)))}"
    unlabelled = '<span class="chip apart"><i style="background:#fff"></i>no label</span>'
    return f'<div class="chips">{text}{unlabelled}</div>'


def _table(sources: Sequence[_Source]) -> str:
    columns = _columns(sources)
    head = "".join(f"<th>{column.title}<span>{escape(column.detail)}</span></th>" for column in columns)
    body = ""
    for name in _names(sources):
        cells = "".join(_cell(column, name) for column in columns)
        body += f'<tr>{cells}</tr><tr><td class="name" colspan="{len(columns)}">{escape(name)}</td></tr>'
    return f"""<div class="scroll"><table class="panels">
<thead><tr>{head}</tr></thead>
<tbody>{body}</tbody></table></div>"""


def _names(sources: Sequence[_Source]) -> list[str]:
    """The images to show, those with a localizer first, because the other steps may have other images."""
    names = [panel.name for source in [*_localized(sources), *sources] for panel in source.panels.panels]
    return list(dict.fromkeys(names))[:_ROWS]


def _localized(sources: Sequence[_Source]) -> list[_Source]:
    """The sources that show a localizer, the method `wilson` first."""
    found = [source for source in sources if any(panel.localizer for panel in source.panels.panels)]
    return sorted(found, key=lambda source: source.run.method != "wilson")


def _columns(sources: Sequence[_Source]) -> list[_Column]:
    widest = max(sources, key=lambda source: len(source.panels.classes))  # its truth shows all classes
    localized = _localized(sources)
    teacher = localized[0] if localized else widest
    detail = teacher.label if len(localized) > 1 else ""
    predictions = [
        _Column("prediction", f"{source.label}, step {source.step.step}", source, lambda panel: panel.prediction)
        for source in sources
    ]
    return [
        _Column("image", "", widest, lambda panel: panel.image, smooth=True),
        _Column("localizer", detail, teacher, lambda panel: panel.localizer, smooth=True),
        _Column("pseudo-label", detail, teacher, lambda panel: panel.pseudo_label),
        *predictions,
        _Column("truth", "", widest, lambda panel: panel.truth),
    ]


def _cell(column: _Column, name: str) -> str:
    panel = column.source.panel(name)
    path = column.picture(panel) if panel is not None else None
    if path is None or path.suffix not in TYPES:
        return f'<td class="none">{DASH}</td>'
    text = escape(f"{column.title} {column.detail} {name}")
    sharp = "" if column.smooth else ' class="map"'
    return f'<td><img{sharp} alt="{text}" src="{url(path)}"></td>'

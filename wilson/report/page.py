"""The report's page, section by section. Every text that comes from a run is escaped."""

import shlex
from collections.abc import Sequence
from html import escape
from typing import Any

from wilson.config.masks import LEAST_BACKGROUND
from wilson.report import confusion, figures, gallery, results, steps
from wilson.report.frame import document
from wilson.report.reading import Run
from wilson.report.results import Group, Result
from wilson.report.text import DASH, percent, short_task

_WHAT = {
    "wilson": "Learns the new classes from image-level labels alone; old model and localizer label the pixels.",
    "rasp": "Like wilson, and expects new classes where the old model sees classes of like names.",
    "finetune": "Learns the new classes from the same image-level labels; nothing preserves the old ones.",
    "cam": "Learns the new classes from hard labels, which a localizer makes from activation maps.",
    "ss": "Learns the new classes from hard labels of a single-stage localizer, refined by the image's colours.",
    "seam": "Learns the new classes from hard labels of a localizer that sees two sizes of each image alike.",
    "eps": "Learns the new classes from hard labels of a localizer that learned from saliency maps.",
    "finetune-pixel": "Learns the new classes from their masks; nothing preserves the old ones.",
    "lwf": "Learns the new classes from their masks, and keeps the old model's probabilities of the old classes.",
    "lwf-mc": "Learns the new classes from their masks, and keeps the old model's sigmoid of each old class.",
    "ilt": "Like lwf, and also keeps the old model's features.",
    "mib": "Learns the new classes from their masks, and allows for old classes in the background.",
    "sdr": "Like mib, and holds the features of each class at a prototype.",
    "plop": "Learns the new classes from their masks and the old model's labels, and keeps the features of all stages.",
    "joint": "Learns from the masks of all classes seen so far: the best that can be expected.",
    "supervised": "The first step: learns its classes from masks.",
    "base": "The first step: learns its classes from masks.",
    "offline": "Learns all classes at once from masks: the best that can be expected.",
}
_SETTINGS = {
    "data.root": "data",
    "data.crop": "crop",
    "data.test_crop": "crop in testing",
    "model.backbone": "backbone",
    "model.stride": "stride",
    "base.epochs": "epochs (base step)",
    "step.epochs": "epochs (later steps)",
    "step.batch": "batch",
}
_PIXELS = 80  # pixels of the page per inch of a confusion matrix
_NAMED = 6  # of a longer list of classes, the page shows the length
_MEANS = {
    "with_background": "with background",
    "without_background": "without background",
    "localizer": "localizer",
    "step_validation": "on the later steps' own data",
}
_COLUMNS = {"old": "old", "new": "new", "all": "all", "change": "first classes, change", "pixels": "pixel accuracy"}


def page(runs: Sequence[Run]) -> str:
    """The whole page.

    Args:
        runs: at least one.

    Returns:
        An HTML document that refers to nothing outside itself.
    """
    labels = results.labels(runs)
    colours = dict(zip(labels, figures.run_colours(runs), strict=True))
    found = results.groups(runs)
    tasks = " and ".join(dict.fromkeys(f"{short_task(run.task)} ({run.protocol})" for run in runs))
    title = f"Weakly incremental segmentation, task {tasks}"
    sections = (
        _summary(found, colours),
        _runs(runs, labels, colours),
        _results(found, colours),
        _steps(runs, labels, colours),
        gallery.section(runs, labels),
        _per_class(found, colours),
        _confusion(runs, labels, colours),
        _training(runs, labels, colours),
        _reproduce(runs, labels),
    )
    lead = """A segmentation model that knows some classes learns new ones. Its training images have no labels of the
old classes and no masks of the new ones: each image comes with the names of the new classes that it shows (image-level
labels), unless a method says otherwise. Two questions matter: does the model learn the new classes, and does it keep
the old ones?"""
    footer = """ IoU of a class: the pixels that both prediction and truth give to it, divided by the pixels that either
gives to it. mIoU: the mean over classes."""
    return document(title, lead, sections, footer)


def _dot(colour: str) -> str:
    return f'<i class="dot" style="background:{colour}"></i>'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _summary(found: Sequence[Group], colours: dict[str, str]) -> str:
    """One tile per run with its last figures, for every task and protocol."""
    parts = ""
    for group in results.final(found):
        tiles = "".join(_tile(result, colours[result.label]) for result in group.results)
        ticked = any(result.figures["before"] is not None for result in group.results)
        tick = ". The tick marks the first classes after the first step" if ticked else ""
        parts += f'<h3>{_group_title(group)}</h3><p class="small muted">mIoU in percent{tick}.</p>'
        parts += f'<div class="tiles">{tiles}</div>'
    return parts


def _tile(result: Result, colour: str) -> str:
    meters = ""
    for figure in ("old", "new", "all"):
        value, before = result.figures[figure], result.figures["before"]
        tick = f'<u style="left:{before:.1f}%"></u>' if figure == "old" and before is not None else ""
        bar = f'<span><i style="width:{value or 0:.1f}%"></i>{tick}</span>'
        meters += f'<div class="meter">{figure}{bar}<b>{percent(value)}</b></div>'
    what = _WHAT.get(result.run.method, "")
    return f'<div class="tile" style="--run:{colour}"><b>{escape(result.label)}</b><p>{escape(what)}</p>{meters}</div>'


def _runs(runs: Sequence[Run], labels: Sequence[str], colours: dict[str, str]) -> str:
    rows = ""
    for run, label in zip(runs, labels, strict=True):
        recipe = run.settings.get("recipe")
        task = escape(run.task).replace(",", ",<wbr>").replace("/", "/<wbr>")  # a long one is broken between classes
        cells = (run.protocol, run.seed, DASH if recipe is None else recipe)
        settings = _key_settings(run) or "config.yaml is missing or unreadable"
        rows += (
            f"<tr><td>{_dot(colours[label])}{escape(label)}</td><td>{task}</td>"
            + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
            + f'<td class="small muted">{escape(settings)}</td><td><code>{escape(run.path.name)}</code></td></tr>'
        )
    titles = ("method", "task", "protocol", "seed", "recipe", "settings", "folder")
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f"""<h2>Runs</h2>
<p>Each run is one method on one task. The task says which classes come in which step, the protocol says which images a
step may use, and the seed fixes all random choices.</p>
<div class="scroll"><table class="data">
<thead><tr>{head}</tr></thead>
<tbody>{rows}</tbody></table></div>
{_images(runs, labels, colours)}"""


def _key_settings(run: Run) -> str:
    """The settings that a reader asks for first, as far as the configuration has them."""
    found = []
    for path, title in _SETTINGS.items():
        value: Any = run.settings
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found.append(f"{title} {value}")
    return ", ".join(found) or ("see its configuration below" if run.settings else "")


def _group_title(group: Group) -> str:
    """Plain words for a group's classes, escaped."""
    last = max(result.step.step for result in group.results)
    title = f"After step {last} of task {short_task(group.task)}, {group.protocol}"
    if 0 < len(group.new) <= _NAMED:
        return escape(f"{title}; new: {', '.join(group.new)}")
    new = f"{len(group.new)} new classes" if group.new else f"{len(group.classes) - 1} classes and background"
    return escape(f"{title}; {new}")


def _results(found: Sequence[Group], colours: dict[str, str]) -> str:
    head = "".join(f'<th class="figure">{title}</th>' for title in _COLUMNS.values())
    body = ""
    for group in found:
        body += f'<tbody><tr><th colspan="{len(_COLUMNS) + 1}">{_group_title(group)}</th></tr>'
        for result in group.results:
            cells = "".join(_figure_cell(group, result, figure) for figure in _COLUMNS)
            body += f"<tr><td>{_dot(colours[result.label])}{escape(result.label)}</td>{cells}</tr>"
        body += "</tbody>"
    if not found:
        return "<h2>Results</h2>" + _note("No step has been evaluated yet: results.json lists none.")
    return f"""<h2>Results</h2>
<p>Mean IoU in percent (higher is better) over the classes of earlier steps (old), of this step (new), and over all
classes with the background. The next column shows how much the mean of the first step's classes has changed since that
step, in points; below zero is forgetting. Bold marks the best of comparable runs. A dash means that a figure does not
exist.</p>
<div class="scroll"><table class="data results"><thead><tr><th>method</th>{head}</tr></thead>{body}</table></div>
{_backgrounds(found)}{_means(found, colours)}"""


def _backgrounds(found: Sequence[Group]) -> str:
    """A note where the validation images have hardly any background, as in data whose stuff are classes."""
    for group in results.final(found):
        for result in group.results:
            if result.step.confusion is not None and result.step.confusion.pixels.sum():
                pixels = result.step.confusion.pixels
                share = pixels[0].sum() / pixels.sum()
                if share < LEAST_BACKGROUND:
                    return _note(
                        f"Background covers {100 * share:.1f} % of the labelled pixels of the validation images. Its "
                        "IoU says little then, and it must fall when a step turns what was background into classes. "
                        "Classes such as sky or grass can be left out of the task, so that they remain background."
                    )
    return ""


def _images(runs: Sequence[Run], labels: Sequence[str], colours: dict[str, str]) -> str:
    """How many images and negatives each step learned from, where the run says so."""
    rows, alone, absent = "", False, []
    for run, label in zip(runs, labels, strict=True):
        for step in (step for step in run.steps if step.training):
            count, images = int(step.training.get("negatives", 0)), step.training.get("images")
            places = step.training.get("negatives_in_batch", 0)
            negatives = f"{count}, {places} in each batch" if count else "none"
            alone |= step.step > 0 and not count and bool(step.localizer)
            absent += [f"{label}, step {step.step}: {name}" for name in step.training.get("absent", [])]
            rows += f"<tr><td>{_dot(colours[label])}{escape(f'{label}, step {step.step}')}</td>"
            rows += f'<td class="figure">{escape(str(images))}</td><td>{escape(negatives)}</td></tr>'
    if not rows:
        return ""
    hint = _note(
        "A step learned from image-level labels without negatives, which are images that show none of its classes. "
        "They often help, also where a step has several classes: --data.find-negatives takes them from the training "
        "list, --data.negatives from a folder."
    )
    lacking = _note(f"No training image holds these classes, so they cannot be learned: {'; '.join(absent)}.")
    return f"""<h3>Images that each step learned from</h3>
<div class="scroll"><table class="data">
<thead><tr><th>step</th><th class="figure">images</th><th>negatives</th></tr></thead><tbody>{rows}</tbody></table></div>
{hint if alone else ""}{lacking if absent else ""}"""


def _means(found: Sequence[Group], colours: dict[str, str]) -> str:
    """The means that the first table does not show, where they were measured."""
    measured = [result for group in found for result in group.results if result.step.with_background]
    if not measured:
        return ""
    kinds = [kind for kind in _MEANS if any(getattr(result.step, kind) for result in measured)]
    groups = ("old", "new", "all")
    head = "".join(f'<th class="figure" colspan="{len(groups)}">{_MEANS[kind]}</th>' for kind in kinds)
    below = "".join(f'<th class="figure">{group}</th>' for group in groups) * len(kinds)
    body = ""
    for result in measured:
        values = [getattr(result.step, kind).get(name) for kind in kinds for name in groups]
        cells = "".join(f'<td class="figure">{percent(value)}</td>' for value in values)
        name = f"{result.label}, step {result.step.step}"
        body += f"<tr><td>{_dot(colours[result.label])}{escape(name)}</td>{cells}</tr>"
    return f"""<h3>With and without background, and the localizer</h3>
<p>The localizer has a score of its own, although a step drops it at the end. It knows which classes an image shows, old
and new, and picks the most likely of them at every pixel. The model does not know them, so the two scores cannot be
compared. The localizer's old and new leave the background out; its all includes it.</p>
<div class="scroll"><table class="data results means">
<thead><tr><th></th>{head}</tr><tr><th>method</th>{below}</tr></thead>
<tbody>{body}</tbody></table></div>"""


def _steps(runs: Sequence[Run], labels: Sequence[str], colours: dict[str, str]) -> str:
    """The course of every run with several steps."""
    parts = ""
    for run, label in zip(runs, labels, strict=True):
        if len(run.steps) >= steps.LEAST:
            course = steps.course(run.steps)
            parts += f"<h3>{_dot(colours[label])}{escape(label)}</h3>{_course_table(course)}"
            parts += f'<div class="chart">{steps.svg(course)}</div>'
    if not parts:
        return ""
    return f"""<h2>Step by step</h2>
<p>Each column is the mean IoU, in percent, of the classes that one step added, after that step and after every later
one. It shows how well the model learns these classes at first, and how much of that remains. The column all includes
the background.</p>
{parts}"""


def _course_table(course: steps.Course) -> str:
    head = ""
    for title, group in zip(course.titles, course.groups, strict=True):
        names = ", ".join(group) if len(group) <= _NAMED else f"{len(group)} classes"
        head += f'<th class="figure">{title}<span>{escape(names)}</span></th>'
    body = ""
    for number, values, everything in zip(course.steps, course.values, course.all, strict=True):
        cells = "".join(f'<td class="figure">{percent(value)}</td>' for value in [*values, everything])
        body += f"<tr><td>{number}</td>{cells}</tr>"
    return f"""<div class="scroll"><table class="data course">
<thead><tr><th>after step</th>{head}<th class="figure">all</th></tr></thead><tbody>{body}</tbody></table></div>"""


def _figure_cell(group: Group, result: Result, figure: str) -> str:
    value = result.figures[figure]
    text = percent(value)
    if figure == "change" and value is not None:
        text = f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")
    if value is not None and value == group.best(figure) and result.run.method not in results.UNRIVALLED:
        text = f"<b>{text}</b>"
    lost = figure == "change" and value is not None and value < -5
    return f'<td class="figure{" loss" if lost else ""}">{text}</td>'


def _per_class(found: Sequence[Group], colours: dict[str, str]) -> str:
    charts = ""
    for group in results.final(found):
        heading = f"<h3>{_group_title(group)}</h3>"
        charts += f'{heading}<div class="chart">{figures.class_bars(group, colours)}</div>'
    if not charts:
        charts = _note("No step has been evaluated yet.")
    return f"""<h2>Class by class</h2>
<p>The IoU of every class after the last step, one bar per run. The tick marks the IoU of the class after the first
step; a bar that ends below its tick shows forgetting. A dash marks a class that no validation image shows.</p>
{charts}"""


def _confusion(runs: Sequence[Run], labels: Sequence[str], colours: dict[str, str]) -> str:
    """The confusion matrix of every run's last step, where it was kept."""
    charts = ""
    for run, label in zip(runs, labels, strict=True):
        last = run.steps[-1] if run.steps else None
        if last is not None and last.confusion is not None:
            width = round(_PIXELS * confusion.size(last.confusion))
            caption = f"{_dot(colours[label])}{escape(label)}, step {last.step}"
            charts += f'<figure class="matrix" style="flex-basis:{width}px"><figcaption>{caption}</figcaption>'
            charts += f"{confusion.svg(last.confusion)}</figure>"
    if not charts:
        return ""
    return f"""<h2>What is taken for what</h2>
<p>Each row shows to which classes (columns) the model gives the pixels of one true class after the last step, in
percent. Correct pixels lie on the diagonal. Lines separate old classes from new ones. A row is empty if no validation
image shows its class.</p>
<div class="matrices">{charts}</div>"""


def _training(runs: Sequence[Run], labels: Sequence[str], colours: dict[str, str]) -> str:
    charts = ""
    for run, label in zip(runs, labels, strict=True):
        for step in run.steps:
            if step.curves:
                charts += f"<h3>{_dot(colours[label])}{escape(label)}, step {step.step}</h3>"
                charts += f'<div class="chart">{figures.curves(step.curves)}</div>'
        lacking = [f"step-{step.step}" for step in run.steps if not step.curves]
        if lacking:
            charts += _note(f"{label}: no curves, as there are no TensorBoard logs in {', '.join(lacking)}.")
    return f"""<h2>Training</h2>
<p>The loss terms, and the mIoU on validation images during training. CLS asks which classes an image shows, LOC and ENC
hold on to the old model, SSS sharpens the localizer, and SEG teaches the segmentation model. SSS and SEG may start some
epochs after the others.</p>
<p>The terms have sizes of their own, so compare a term with its past and not with another one. SSS counts only pixels
that the localizer is sure about, and its labels are the localizer's own output, so it is near 0 from its start: that is
no fault. ENC is a distance of features, and its size is that of the features of this network: what matters is that it
stays level and does not grow.</p>
{charts}"""


def _reproduce(runs: Sequence[Run], labels: Sequence[str]) -> str:
    blocks = ""
    for run, label in zip(runs, labels, strict=True):
        command = f"<pre>{escape(run.command)}</pre>" if run.command else ""
        config = f"<pre>{escape(run.config)}</pre>" if run.config else _note("config.yaml is missing or unreadable.")
        blocks += f"<details><summary>{escape(label)}: command and configuration</summary>{command}{config}</details>"
    return f"""<h2>How to reproduce</h2>
<p>The configuration, which includes the seed, determines a run; it is in config.yaml in the run's folder. This command
writes the same page again:</p>
<pre>wilson report {escape(shlex.join(str(run.path) for run in runs))} --out report.html</pre>
{blocks}"""

"""Which steps of which runs are comparable, and the figures that compare them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wilson.report.reading import Run, Step

UNRIVALLED = ("joint", "offline")
"""Methods that see all masks."""


@dataclass(frozen=True)
class Result:
    """One run after one step.

    `figures` holds "old", "new", "all", "pixels" and "before" in percent, and "change" in points. "before" is the mean
    IoU of the first step's classes (without background) after that step. "change" is their mean IoU now less "before";
    below zero it is forgetting. `first` is that first step, None if no run recorded it.
    """

    label: str
    run: Run
    step: Step
    first: Step | None
    figures: dict[str, float | None]


@dataclass(frozen=True)
class Group:
    """Results over the same classes of the same task and protocol; `new` is empty if no earlier step is known."""

    task: str
    protocol: str
    classes: list[str]
    new: list[str]
    results: list[Result]

    def best(self, figure: str) -> float | None:
        """The highest value of a figure among two or more runs; those that see all masks do not compete."""
        values = [result.figures[figure] for result in self.results if result.run.method not in UNRIVALLED]
        known = [value for value in values if value is not None]
        return max(known) if len(known) > 1 else None


def labels(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: its method, and what distinguishes it from other runs of that method."""
    chosen = [run.method for run in runs]
    traits = [(run.task, run.protocol, f"seed {run.seed}", run.path.name, str(run.path)) for run in runs]
    for trait in zip(*traits, strict=True):
        for label in [label for label in dict.fromkeys(chosen) if chosen.count(label) > 1]:
            members = [i for i, other in enumerate(chosen) if other == label]
            if len({trait[i] for i in members}) > 1:
                for i in members:
                    chosen[i] = f"{label}, {trait[i]}"
    return chosen


def groups(runs: Sequence[Run]) -> list[Group]:
    """Group comparable results, in the order in which task and protocol first appear, then by number of classes."""
    names = dict(zip(map(id, runs), labels(runs), strict=True))
    found = []
    for task, protocol in dict.fromkeys((run.task, run.protocol) for run in runs):
        members = [run for run in runs if (run.task, run.protocol) == (task, protocol)]
        class_lists = {frozenset(step.classes): step.classes for run in members for step in run.steps}
        for classes in sorted(class_lists.values(), key=len):
            earlier = [some for some in class_lists.values() if set(some) < set(classes)]
            old = max(earlier, key=len, default=[])
            new = [name for name in classes if name not in old] if old else []
            results = [
                _result(names[id(run)], run, step, _first(run, members), new)
                for run in members
                for step in run.steps
                if set(step.classes) == set(classes)
            ]
            found.append(Group(task, protocol, classes, new, results))
    return found


def final(found: Sequence[Group]) -> list[Group]:
    """The last group of every task and protocol: the one with the most classes."""
    return list({(group.task, group.protocol): group for group in found}.values())


def mean_iou(step: Step, classes: Iterable[str]) -> float | None:
    """Mean IoU over the classes that the ground truth holds, in percent; None without any."""
    values = [step.iou.get(name) for name in classes]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _first(run: Run, members: Sequence[Run]) -> Step | None:
    """The result after step 0: of the run itself, or of a run with the same seed, from which it may have started."""
    for candidate in [run, *(other for other in members if other.seed == run.seed)]:
        for step in candidate.steps:
            if step.step == 0:
                return step
    return None


def _result(label: str, run: Run, step: Step, first: Step | None, new: Sequence[str]) -> Result:
    figures = dict(step.miou)
    if new and figures["old"] is None:  # all classes at once (offline): split like the runs beside it
        figures["old"] = mean_iou(step, [name for name in step.classes[1:] if name not in new])
        figures["new"] = mean_iou(step, new)
    figures["pixels"] = step.pixel_accuracy
    if first is not None and not set(first.classes) < set(step.classes):
        first = None
    before = mean_iou(first, first.classes[1:]) if first is not None else None
    now = mean_iou(step, first.classes[1:]) if first is not None else None
    figures["before"] = before
    figures["change"] = now - before if now is not None and before is not None else None
    return Result(label, run, step, first, figures)

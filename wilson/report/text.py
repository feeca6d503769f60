"""How figures are formatted, on the page and in a terminal."""

from __future__ import annotations

DASH = "\N{EN DASH}"
"""Stands for a figure that does not exist."""


LONGEST = 60  # letters of a task in a title


def short_task(task: str) -> str:
    """A task for a title: a long list of classes becomes the number of classes in each step."""
    if len(task) <= LONGEST:
        return task
    return f"of {'/'.join(str(len(step.split(','))) for step in task.split('/'))} classes"


def percent(value: float | None) -> str:
    """Format a percentage with one decimal; a dash for None."""
    return DASH if value is None else f"{value:.1f}"

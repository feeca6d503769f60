"""How figures are formatted, on the page and in a terminal."""

from __future__ import annotations

DASH = "\N{EN DASH}"
"""Stands for a figure that does not exist."""


def percent(value: float | None) -> str:
    """Format a percentage with one decimal; a dash for None."""
    return DASH if value is None else f"{value:.1f}"

"""The seeds of a run, derived from the user's. (Samples derive theirs in `data.dataset`.)"""

from __future__ import annotations


def of_step(seed: int, step: int) -> int:
    """The seed of a step's fresh weights, and of dropout in the first process."""
    return seed * 1000 + step


def of_process(seed: int, epoch: int, rank: int) -> int:
    """The seed of dropout in an epoch, for processes other than the first; each has its own, the same when resumed."""
    return hash((seed, epoch, rank))

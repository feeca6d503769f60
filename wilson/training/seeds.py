"""The seeds of a run, each derived from the one that the user gives. (Samples derive theirs in `data.dataset`.)"""

from __future__ import annotations


def of_step(seed: int, step: int) -> int:
    """Of a step's fresh weights, and of dropout in the first process."""
    return seed * 1000 + step


def of_process(seed: int, epoch: int, rank: int) -> int:
    """Of dropout in an epoch, in a process other than the first: of its own, and the same when resumed."""
    return hash((seed, epoch, rank))

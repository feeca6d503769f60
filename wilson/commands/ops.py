"""The command ops, which works without the train extra."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ops:
    """Print which provider serves each op on each device, and why a better one is missing."""

    def __call__(self) -> int:
        from wilson import ops

        ops.providers()
        return 0

"""The command data bench."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from .options import Options


@dataclass(frozen=True)
class DataBench:
    """Print how many training images per second 0, 1, 2, 4 ... workers read, decode, crop and batch."""

    config: Options
    number: Annotated[int, arg(name="step")] = 0
    """Step whose images are loaded, from 0."""
    seconds: float = 5.0
    """Time to load with each number of workers, after the first batch of each worker."""
    need: float | None = None
    """Images per second that the GPUs can train on; prints also how many workers keep up with them."""

    def __call__(self) -> int:
        from wilson.runs.loading_speed import bench

        bench(self.config, self.number, self.seconds, self.need)
        return 0

"""The log of a step in training: a progress bar, a TensorBoard log, a line for each epoch, and a note of the rest."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import TypeVar

import torch

from wilson import distributed
from wilson.atomic import replacing
from wilson.run_folder import StepFolder

from .board import Board, Silent

T = TypeVar("T")
TELL = 60.0  # seconds between two lines on the time left
NOTE = 1.0  # and between two notes of it in the folder


class Log:
    """The log of a step; only the first process writes and prints.

    Args:
        folder: of the step.
        purge_step: iteration from which an older log in the folder is discarded.
        title: of the step, for the progress bar.
        epochs: number of epochs of the step.
        batch: images in a global batch.
        parts: of each batch; a loader gives them one after the other.
    """

    def __init__(
        self, folder: StepFolder, purge_step: int, title: str, epochs: int, batch: int, parts: int = 1
    ) -> None:
        self.title, self.epochs, self.batch, self.parts = title, epochs, batch, parts
        self.folder, self.noted = folder, 0.0
        self.board = Board(folder, purge_step) if distributed.is_main() else Silent()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with nullcontext() if kind is None else suppress(OSError):  # the first error is the one to tell
            self.board.close()

    def progress(self, loader: Iterable[T], epoch: int) -> Iterator[T]:
        """Iterate over a loader with a progress bar; starts the means and the clock of an epoch."""
        from tqdm import tqdm

        self.name = f"{self.title}, epoch {epoch + 1}/{self.epochs}"
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.iterations, self.start, self.told = 0, time.monotonic(), time.monotonic()
        self.epoch, self.batches = epoch, len(loader) // self.parts  # type: ignore[arg-type]
        self.bar = tqdm(loader, self.name, leave=False, disable=None if distributed.is_main() else True, unit="batch")
        return iter(self.bar)

    def iteration(
        self, iteration: int, losses: dict[str, float], norm: float, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log one iteration: the loss terms, the norm of the gradient, and the learning rates."""
        self.iterations += 1
        for term, value in losses.items():
            self.sums[term] += value
            self.board.add_scalar(f"loss/{term}", value, iteration)
        for group in optimizer.param_groups:
            self.board.add_scalar(f"lr/{group['name']}", group["lr"], iteration)
        self.board.add_scalar("gradient_norm", norm, iteration)
        self.speed = self.iterations * self.batch / (time.monotonic() - self.start)
        self.note()
        self.tell()
        terms = " ".join(f"{term} {value:.3f}" for term, value in losses.items())
        self.bar.set_postfix_str(f"{terms}, {self.speed:.0f} images/s")

    def tell(self) -> None:
        """Print the time left once a minute, where no progress bar shows it."""
        now = time.monotonic()
        if not self.bar.disable or not distributed.is_main() or now - self.told < TELL:
            return
        self.told = now
        left, rest = self.left()
        print(
            f"{self.name}: batch {self.iterations} of {self.batches}, {self.speed:.0f} images/s, about "
            f"{timedelta(seconds=round(left))} left of the epoch, {timedelta(seconds=round(rest))} of the step",
            flush=True,
        )

    def note(self) -> None:
        """Write how far the step is to its folder, for whoever watches it."""
        now = time.monotonic()
        if not distributed.is_main() or now - self.noted < NOTE:
            return
        self.noted = now
        far = {
            "epoch": self.epoch + 1,
            "epochs": self.epochs,
            "iteration": self.epoch * self.batches + self.iterations,
            "iterations": self.epochs * self.batches,
            "seconds_left": round(self.left()[1], 1),
        }
        with replacing(self.folder.progress) as temporary:
            temporary.write_text(json.dumps(far), encoding="utf-8")

    def left(self) -> tuple[float, float]:
        """The seconds left of the epoch and of the step, at the pace of this epoch."""
        each = (time.monotonic() - self.start) / self.iterations
        left = each * (self.batches - self.iterations)
        return left, left + each * self.batches * (self.epochs - self.epoch - 1)

    def end_of_epoch(self) -> None:
        """Print the mean loss terms of the epoch, the speed, and the time left of the step."""
        if distributed.is_main():
            means = " ".join(f"{term} {value / self.iterations:.4f}" for term, value in self.sums.items())
            left = round(self.left()[1])
            rest = f", about {timedelta(seconds=left)} left" if self.epoch + 1 < self.epochs else ""
            print(f"{self.name}: {means}, {self.speed:.0f} images/s{rest}", flush=True)

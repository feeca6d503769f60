"""Measure how fast training images load, and whether a GPU would have to wait for them."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping

import torch
from torch.utils.data import DataLoader

from wilson.config import Config
from wilson.data.loading import make_loader
from wilson.errors import UserError

from .checks import check_batch
from .experiment import Experiment


def bench(config: Config, step: int, seconds: float, need: float | None) -> dict[int, float]:
    """Print and return images per second by number of workers: 0, 1, 2, 4 ... up to `config.data.workers`.

    Args:
        config: of the run whose images are loaded, with its crop and batches.
        step: the step.
        seconds: time to load with each number of workers.
        need: images per second that the GPUs can train on; None if unknown.

    Raises:
        UserError: the data do not fit together, or `seconds` or `need` is not positive.
    """
    for name, value in (("--seconds", seconds), ("--need", need)):
        if value is not None and not value > 0:
            raise UserError(f"{name}: expected a positive number, got {value}")
    dataset, settings = Experiment.open(config).training_set(step), config.for_step(step)
    check_batch(step, dataset, settings)
    batch = settings.batch
    most = config.data.workers
    counts = sorted({0, most, *(2**power for power in range(most.bit_length()))})
    rates: dict[int, float] = {}
    print(f"step {step}: {len(dataset)} images, crop {config.data.crop}, batches of {batch}")
    print("workers  images/s  per worker")
    for workers in counts:
        sampler = dataset.sampler(batch, settings.passes)
        loader = make_loader(dataset, batch, workers, torch.device("cpu"), sampler)
        rates[workers] = images_per_second(loader, batch, seconds)
        print(f"{workers:7}  {rates[workers]:8.1f}  {rates[workers] / max(1, workers):10.1f}", flush=True)
    if need is not None:
        print(f"{need:g} images/s need {workers_for(need, rates)} workers, with a core for each")
    return rates


def workers_for(need: float, rates: Mapping[int, float]) -> int:
    """The smallest measured number of workers that loads `need` images per second, else scaled from the largest one."""
    enough = [workers for workers, rate in rates.items() if rate >= need]
    most = max(rates)
    return min(enough) if enough else math.ceil(need / rates[most] * max(1, most))


def images_per_second(loader: DataLoader[object], batch: int, seconds: float) -> float:
    """Images loaded per second, over as many epochs as the time allows, after one batch of each worker."""
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for _ in range(max(1, loader.num_workers)):
        next(batches)
    start, images = time.monotonic(), 0
    while images == 0 or time.monotonic() - start < seconds:
        next(batches)
        images += batch
    return images / (time.monotonic() - start)

"""Training with several processes that torchrun starts; together they compute what one process would.

Each process takes its share of every global batch. DistributedDataParallel averages the gradients over the processes,
so each process scales its losses such that this average is the mean over the global batch.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from wilson.errors import UserError, first_line

T = TypeVar("T")
# How long a process waits for the others before it gives up; meanwhile the first process may scan a data set or write
# a report.
TIMEOUT = timedelta(minutes=30)


def launched() -> bool:
    """Whether torchrun started this process among others; schedulers and notebooks set its variables for one, too."""
    return "LOCAL_RANK" in os.environ and _variable("WORLD_SIZE", 1) > 1


def local_rank() -> int:
    """Number of this process on its machine; its GPU has the same number."""
    return _variable("LOCAL_RANK", 0)


def restarted() -> bool:
    """Whether torchrun started this process again after one had died."""
    return _variable("TORCHELASTIC_RESTART_COUNT", 0) > 0


def may_restart() -> bool:
    """Whether torchrun will start the processes again if one dies."""
    return _variable("TORCHELASTIC_MAX_RESTARTS", 0) > 0


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text or default)
    except ValueError:
        raise UserError(f"{name} in the environment: expected a whole number, got '{text[:50]}'; unset it") from None


def choose_device(name: str) -> torch.device:
    """The device that a name stands for, checked to work.

    Args:
        name: auto (the first GPU if there is one, else the CPU), cpu, cuda or cuda:N. Under torchrun, auto and cuda
            give each process of a machine a GPU of its own.

    Raises:
        UserError: the device is not usable.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and launched():
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name} is not usable ({first_line(error)}); use cpu or auto") from error
    return device


@contextmanager
def session(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started; does nothing without torchrun, or inside another session.

    Args:
        device: of this process; GPUs communicate by nccl, CPUs by gloo.

    Raises:
        UserError: the processes do not find each other, or another one stops while this one needs it.
    """
    if not launched() or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        store, number, count = next(rendezvous("env://", timeout=TIMEOUT))
        store = dist.PrefixStore(_agree(store, number, count), store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes do not find each other ({first_line(error)}); start them with torchrun, and check "
            "--rdzv-endpoint, the firewall and GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME"
        ) from error
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "by peer" in str(error) or "Broken pipe" in str(error):
            raise UserError(
                "another process has stopped, so this one stops, too; the other one printed the reason. torchrun "
                "--max-restarts starts all again from the newest checkpoint; without it, use --resume"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def _agree(store: dist.Store, number: int, count: int) -> str:
    """Agree with the other processes on a name that no earlier session has used.

    torchrun may keep the store over a restart, with the addresses of processes that are gone. Machines count their
    restarts separately, and a process may open several sessions in turn. So no counter would do, and the first process
    makes up a random name. Every other process writes a random word under the name that it reads, and accepts the name
    once the first process has repeated the word. Nobody answers under an old name.
    """
    mine, deadline = uuid.uuid4().hex, time.monotonic() + TIMEOUT.total_seconds()

    def pause() -> None:
        if time.monotonic() > deadline:
            raise RuntimeError("not all processes have arrived")
        time.sleep(0.02)

    if number == 0:
        store.set("wilson/name", mine)
        for other in range(1, count):
            question = f"wilson/{mine}/{other}"
            while not store.check([question]):
                pause()
            store.set(f"{question}/answer", store.get(question).decode())
        return mine
    while True:
        name = store.get("wilson/name").decode()
        question = f"wilson/{name}/{number}"
        store.set(question, mine)
        if store.check([f"{question}/answer"]) and store.get(f"{question}/answer").decode() == mine:
            return name
        pause()


def processes() -> int:
    """Number of processes that compute together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among all of them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return rank() == 0


def wait() -> None:
    """Wait until all processes have called this function."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the first process before the others, so that they find what it leaves in a cache."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def from_main(value: T) -> T:
    """The first process's `value`, a picklable object, in every process."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


def anywhere(fact: bool) -> bool:
    """Whether the fact is true in any process."""
    if not dist.is_initialized():
        return fact
    facts: list[bool] = [fact] * processes()
    dist.all_gather_object(facts, fact)
    return any(facts)


def total(values: Tensor) -> Tensor:
    """Sum of a tensor over all processes; not differentiable."""
    if not dist.is_initialized():
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def share(length: int) -> range:
    """Positions of the items, out of `length`, that this process takes; exactly one process takes each item."""
    return range(rank(), length, processes())


def part(length: int, parts: int, index: int) -> slice:
    """Part number `index` when `length` items are cut into `parts` contiguous parts, as equal as possible."""
    return slice(length * index // parts, length * (index + 1) // parts)


def global_mean(loss: Tensor, weight: Tensor, images: int, eps: float = 0.0) -> Tensor:
    """Turn a weighted mean over this process's images into one over the global batch.

    The training loop treats every loss as a mean over images: it multiplies the loss by this process's share of the
    images and sums over the processes. That is wrong for a loss s / (w + eps) whose weight w is not the number of
    images. Such a loss becomes s / (W + eps), with W the sum of w over all processes, divided by this process's share
    of the images. The loop's factor then cancels.

    Args:
        loss: s / (w + eps), a scalar.
        weight: w, a scalar: what the loss was divided by, without eps.
        images: number of images in this process's batch.
        eps: of the loss, at least 0.

    Returns:
        The scalar to hand to the loop; `loss` itself if there is no other process. Differentiable in `loss`.
    """
    if not dist.is_initialized():
        return loss
    weight = weight.detach().to(torch.float64)
    everywhere, all_images = total(torch.stack([weight, weight.new_tensor(images)])).unbind()
    factor = (weight + eps) / (everywhere + eps) * all_images / images
    # 0 / 0 where no process has anything to count
    return loss * factor.nan_to_num(0.0, 0.0, 0.0).to(loss.dtype)

"""Several processes, started by torchrun, that compute together what one would with the same global batch.

Each process takes its share of every global batch. A loss that is a mean over images is scaled so that the mean over
processes, which DistributedDataParallel takes of the gradients, is the mean over the global batch.
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
# Of a collective: a process that waits longer gives up. The first process may scan a data set or write a report
# meanwhile.
TIMEOUT = timedelta(minutes=30)


def launched() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_rank() -> int:
    """Number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def restarted() -> bool:
    """Whether torchrun started this process anew after another one had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def may_restart() -> bool:
    """Whether torchrun will start this process anew if one dies."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0


def choose_device(name: str) -> torch.device:
    """The device of a name, auto for a GPU if there is one; the processes of a machine take a GPU each."""
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
    """Joins the processes that torchrun started; does nothing in a process of its own, or inside another session.

    Args:
        device: of this process: nccl on GPUs, gloo on CPUs.

    Raises:
        UserError: the processes do not find each other.
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
                "another process has stopped, and this one with it; what the other one printed says why. With torchrun "
                "--max-restarts all go on from the newest checkpoint, without it --resume does"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def _agree(store: dist.Store, number: int, count: int) -> str:
    """A name that only these processes have, at this time.

    torchrun may keep the store over a restart, with the addresses of processes that are gone, and machines count their
    restarts apart; and a process may open one session after another. So the first process makes a name up, and answers
    each of the others with what that one has written under it: an old name gives no answer.
    """
    mine, deadline = uuid.uuid4().hex, time.monotonic() + TIMEOUT.total_seconds()

    def pause() -> None:
        if time.monotonic() > deadline:
            raise RuntimeError("not all processes came")
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
    """How many processes compute together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among all."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files."""
    return rank() == 0


def wait() -> None:
    """Until all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_first() -> Iterator[None]:
    """The first process does what is inside before the others do: what it leaves in a cache, they find."""
    if not is_main():
        wait()
    yield
    if is_main():
        wait()


def from_main(value: T) -> T:
    """What the first process has for `value`, a plain object."""
    box = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(box)
    return box[0]


def anywhere(fact: bool) -> bool:
    """Whether it is true in any process."""
    if not dist.is_initialized():
        return fact
    facts: list[bool] = [fact] * processes()
    dist.all_gather_object(facts, fact)
    return any(facts)


def total(values: Tensor) -> Tensor:
    """The sum over all processes; not differentiable."""
    if not dist.is_initialized():
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def share(length: int) -> range:
    """Which of `length` things this process takes: every one is taken by exactly one process."""
    return range(rank(), length, processes())


def part(length: int, parts: int, index: int) -> slice:
    """One of `parts` neighbouring parts of `length` things, as even as can be."""
    return slice(length * index // parts, length * (index + 1) // parts)


def global_mean(loss: Tensor, weight: Tensor, images: int, eps: float = 0.0) -> Tensor:
    """A weighted mean over this process's images, made one over the global batch.

    The loop takes every loss for a mean over images: it multiplies by this process's share of them and adds up. A loss
    that is s / (w + eps) here, with another weight w than the number of images, becomes s / (W + eps), W the sum of w
    over all processes, times what cancels that share.

    Args:
        loss: s / (w + eps), a scalar.
        weight: w, a scalar: what the loss was divided by, eps left out.
        images: number of images of this process's batch.
        eps: of the loss.

    Returns:
        The scalar to hand to the loop; `loss` itself in a process of its own. Differentiable as `loss` is.
    """
    if not dist.is_initialized():
        return loss
    weight = weight.detach().to(torch.float64)
    everywhere, all_images = total(torch.stack([weight, weight.new_tensor(images)])).unbind()
    factor = (weight + eps) / (everywhere + eps) * all_images / images
    # 0 / 0: no process has anything to count
    return loss * factor.nan_to_num(0.0, 0.0, 0.0).to(loss.dtype)

"""Runs a function in several processes that talk over gloo, as torchrun would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_processes(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function` returned in each process. Forked: they start at once and see what a test has patched."""
    context = multiprocessing.get_context("fork")
    answers, port = context.SimpleQueue(), free_port()
    children = [
        context.Process(target=_child, args=(rank, count, port, answers, function, arguments)) for rank in range(count)
    ]
    for child in children:
        child.start()
    found: dict[int, tuple[bool, Any]] = {}
    while len(found) < count and (not answers.empty() or any(child.is_alive() for child in children)):
        if answers.empty():
            time.sleep(0.01)
        else:
            rank, answer = answers.get()
            found[rank] = answer
    for child in children:
        child.join()
    died = {rank: (False, f"died with {children[rank].exitcode}") for rank in range(count) if rank not in found}
    found |= died
    failed = {rank: text for rank, (good, text) in found.items() if not good}
    assert not failed, "\n".join(f"process {rank}: {text}" for rank, text in failed.items())
    return [found[rank][1] for rank in range(count)]


def _child(rank: int, count: int, port: int, answers: Any, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive the fork
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        answers.put((rank, (True, function(*arguments))))
    except BaseException:
        answers.put((rank, (False, traceback.format_exc())))

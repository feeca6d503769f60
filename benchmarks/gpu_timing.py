"""Times of calls on a GPU, none of which waits for the device inside of what is timed.

Inputs lie in the L2 cache where they fit, as they do in training, where the layer before has just written them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

WARM_UPS, ROUNDS = 3, 9
BATCH_SECONDS = 0.02  # of device time that one round takes


def times(call: Callable[[], Any]) -> dict[str, float | str]:
    """Microseconds of a call: replayed from a graph, launched one after the other, and of the host alone."""
    found: dict[str, float | str] = {}
    for _ in range(WARM_UPS):
        call()
    torch.cuda.synchronize()
    repeats = _repeats(call)
    found["events, us"] = 1e6 * _by_events(call, repeats)
    found["host, us"] = 1e6 * _on_the_host(call, min(repeats, 50))
    try:
        found["graph, us"] = 1e6 * _by_graph(call, min(repeats, 20))
    except RuntimeError as error:
        found["graph"] = str(error).splitlines()[0]
    return {key: round(value, 2) if isinstance(value, float) else value for key, value in found.items()}


def _between_events(work: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _repeats(call: Callable[[], Any]) -> int:
    return max(1, min(200, int(BATCH_SECONDS / max(_between_events(call), 1e-6))))


def _by_events(call: Callable[[], Any], repeats: int) -> float:
    def work() -> None:
        for _ in range(repeats):
            call()

    return statistics.median(_between_events(work) for _ in range(ROUNDS)) / repeats


def _on_the_host(call: Callable[[], Any], repeats: int) -> float:
    """Until the last call has returned, its kernels still waiting in the queue."""
    rounds = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        rounds.append((time.perf_counter() - start) / repeats)
    torch.cuda.synchronize()
    return statistics.median(rounds)


def _by_graph(call: Callable[[], Any], repeats: int) -> float:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            call()
    for _ in range(WARM_UPS):
        graph.replay()
    return statistics.median(_between_events(graph.replay) for _ in range(ROUNDS)) / repeats

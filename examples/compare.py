"""What the examples print: time and memory of the usual code and of the code with wilson.ops."""

import time
from collections.abc import Callable

from benchmarks import measure


def compare(what: str, usual: Callable[[], object], ours: Callable[[], object], rounds: int = 3) -> dict[str, float]:
    """Call both in turn, print the shortest time and the peak memory of each; returns by what factors ours saves."""
    seconds: dict[str, list[float]] = {"usual": [], "wilson.ops": []}
    peak = {"usual": 0, "wilson.ops": 0}
    calls = {"usual": usual, "wilson.ops": ours}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            measure.finish()
            seconds[name].append(time.perf_counter() - start)
    for name, call in calls.items():
        peak[name] = measure.peak_extra_bytes(call)
        print(f"{what}, {name}: {1e3 * min(seconds[name]):.1f} ms, {peak[name] / 1e6:.1f} MB at most")
    return {
        "time": min(seconds["usual"]) / min(seconds["wilson.ops"]),
        "memory": peak["usual"] / max(peak["wilson.ops"], 1),
    }

"""What `gpu_day` measured, as the tables of docs/performance.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks import bench_ops

FOLDER = Path(__file__).parents[1] / "docs" / "gpu"
PROVIDERS = ("cuda", "triton")

INTRODUCTION = """{card}, torch {torch}, {date}; `python -m benchmarks.gpu_day`. Microseconds of forward and backward.
"graph" is the device's time, replayed from a CUDA graph; "launched" is the time of a call among calls launched one
after the other, which is the host's time where that is longer. Inputs lie in the L2 cache, as after the layer before.
eager is the reference in PyTorch; every result is compared with it in float64 first.
"""


def days() -> list[dict[str, Any]]:
    """The results of every card, the newest first."""
    found = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    return sorted(found, key=lambda day: day["date"], reverse=True)


def results(day: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    """What a stage measured, for every provider that has it."""
    return [
        row
        for found in day["stages"]
        if found["stage"].rpartition("-")[0] == stage or found["stage"] == stage
        for row in found.get("results", [])
    ]


def tests(day: dict[str, Any]) -> list[list[Any]]:
    """Stages that ran tests, and how they ended."""
    return [[found["stage"], found["summary"]] for found in day["stages"] if "summary" in found]


def ops(day: dict[str, Any], grid: str) -> tuple[list[str], list[list[Any]]]:
    """Device time of every op in both formats, beside eager's, and what a launched call takes."""
    measured = {(row["op"], row["format"], row["provider"]): row for row in results(day, "ops") if row["grid"] == grid}
    formats = list(dict.fromkeys(form for _, form, _ in measured))
    header = ["op", "format", "CUDA, graph", "Triton, graph", "eager, graph", "CUDA against eager"]
    header += ["CUDA, launched", "eager, launched", "CUDA, host"]
    rows = []
    for op in bench_ops.NAMES:
        for form in formats:
            cuda, triton, eager = (measured.get((op, form, name), {}) for name in (*PROVIDERS, "eager"))
            if not cuda:
                continue
            gain = f"{eager['graph, us'] / cuda['graph, us']:.1f}x" if "graph, us" in eager else ""
            graphs = [_number(row, "graph, us") for row in (cuda, triton, eager)]
            launched = [_number(row, "events, us") for row in (cuda, eager)]
            rows.append([f"`{op}`", form, *graphs, gain, *launched, _number(cuda, "host, us")])
    return header, rows


def labelled(day: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """PAMR with image-level labels."""
    rows = [
        [row["grid"], row["format"], row["provider"], *(_number(row, f"{key}, us") for key in ("graph", "events"))]
        for row in results(day, "labelled")
    ]
    return ["grid", "format", "by", "graph", "launched"], rows


def step(day: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """All losses of a step."""
    rows = []
    for row in results(day, "step"):
        times = (_number(row, f"{key}, us") for key in ("graph", "events"))
        rows.append([row["grid"], row["format"], row["provider"], *times, row.get("peak extra MB", "")])
    return ["grid", "format", "losses by", "graph", "launched", "peak extra MB"], rows


def training(day: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """A whole training step."""
    rows = [[row["images"], row["provider"], row["ms"], row.get("peak GB", "")] for row in results(day, "training")]
    return ["images", "losses by", "ms", "peak GB"], rows


def profile(day: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Device time and launches, and the share that is spent in kernels of this project."""
    rows = []
    for row in results(day, "profile"):
        ours = sum(kernel["us"] for kernel in row["ours"])
        slowest = [re.findall(r"\w+_kernel", kernel["kernel"])[0] for kernel in row["ours"][:1]]
        rows.append([row["of"], row["us"], row["launches"], f"{100 * ours / row['us']:.1f} %", *slowest])
    return ["of", "device, µs", "launches", "ours", "our slowest"], rows


def _number(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.0f}" if key in row else row.get("error", "")[:40]

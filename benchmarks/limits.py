"""What each op has to do at least, and how fast this machine can do it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tests.support import cases

ITERATIONS, NEIGHBOURS = 10, 40  # of PAMR


@dataclass(frozen=True)
class Work:
    """Forward and backward of one call: exponentials, multiply-adds (where they rule), and bytes in float32."""

    exps: int
    multiply_adds: int
    bytes: int


def work(op: str, shape: cases.Shape) -> Work:
    """Counts of the formulas, not of an implementation: each input read once in forward, the gradient written once."""
    pixels = shape.batch * shape.height * shape.width
    all_classes, old, up = pixels * shape.classes, pixels * shape.old, shape.batch * _area(shape.scaled())
    labels = 8 * up  # int64
    return {
        "ngwp_focal_pool": Work(2 * all_classes, 0, 4 * 2 * all_classes),
        "localization_prior_loss": Work(4 * old, 0, 4 * (2 * old + all_classes)),
        "soft_margin_loss": Work(2 * all_classes, 0, 4 * 3 * all_classes),
        "merge_pseudo_labels": Work(all_classes + old, 0, 4 * (2 * all_classes + old)),
        "pseudo_label_loss": Work(2 * all_classes + old, 0, 4 * (3 * all_classes + old)),
        "pamr": Work(NEIGHBOURS * pixels, ITERATIONS * NEIGHBOURS * all_classes, 4 * (3 * pixels + 2 * all_classes)),
        "confident_labels": Work(0, 0, 4 * all_classes + 8 * pixels),
        "balanced_cross_entropy": Work(2 * all_classes, 0, 4 * 2 * all_classes + 8 * pixels),
        "confident_labels+balanced_cross_entropy": Work(2 * all_classes, 0, 4 * 3 * all_classes + 2 * 8 * pixels),
        "upsampled_soft_margin_loss": Work(up * shape.classes, 2 * up * shape.classes, 4 * 2 * all_classes + labels),
        "upsampled_cross_entropy": Work(up * shape.classes, 2 * up * shape.classes, 4 * 2 * all_classes + labels),
        "upsampled_argmax": Work(0, 2 * up * shape.classes, 4 * all_classes + up),
    }[op]


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


@dataclass(frozen=True)
class Machine:
    """Rates of this machine's CPU on the threads in use, as PyTorch's own kernels reach them."""

    exps: float  # per second: torch.exp on data in the cache
    multiply_adds: float  # per second: a matrix product
    bytes: float  # per second: a copy of 12 MB, read and written

    def seconds(self, work: Work) -> dict[str, float]:
        return {
            "exp": work.exps / self.exps,
            "arithmetic": work.multiply_adds / self.multiply_adds,
            "memory": work.bytes / self.bytes,
        }


def measure_machine() -> Machine:
    cached, large = torch.full((1 << 17,), -1.0), torch.zeros(12 * 10**6 // 4)
    square = torch.ones(768, 768)
    to_cached, to_large, to_square = torch.empty_like(cached), torch.empty_like(large), torch.empty_like(square)
    return Machine(
        exps=cached.numel() / _fastest(lambda: torch.exp(cached, out=to_cached)),
        multiply_adds=768**3 / _fastest(lambda: torch.mm(square, square, out=to_square)),
        bytes=2 * 4 * large.numel() / _fastest(lambda: to_large.copy_(large)),
    )


def _fastest(call: Callable[[], object], rounds: int = 200) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)

"""All losses of an incremental step together, and how many ops they send to a kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import measure
from benchmarks.bench_ops import GRIDS
from tests.support import cases
from wilson import ops
from wilson.ops import reference

VIEWS = {  # ops that only rename memory
    "alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "squeeze", "t", "transpose",
    "unsqueeze", "view", "_unsafe_view", "unbind", "lift_fresh",
}  # fmt: skip
MOST_OPS = 40


class CountOps(TorchDispatchMode):
    """Counts the ops that reach a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ not in VIEWS:
            self.count += 1
        return func(*args, **(kwargs or {}))


def losses(module, variables: tuple[Tensor, ...], constants: tuple[Tensor, ...]) -> Tensor:
    """CLS + LOC + ENC + SEG + SSS, as in `wilson.methods`, on tensors at hand."""
    scores, logits, features = variables
    frozen_scores, old_logits, old_features, image, labels = constants
    old = old_logits.shape[1]
    pooled = module.ngwp_focal_pool(scores)
    loss = F.binary_cross_entropy_with_logits(pooled[:, old:], labels[:, old - 1 :])
    loss = loss + module.localization_prior_loss(scores, old_logits)
    loss = loss + F.mse_loss(features, old_features)
    loss = loss + module.pseudo_label_loss(logits, frozen_scores, old_logits, labels)
    refined = module.pamr(image, frozen_scores.softmax(1), image_labels=labels)
    pixels, counts = module.confident_labels(refined, labels)
    return loss + module.balanced_cross_entropy(scores, pixels, counts, labels)


def step(module, grid: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous"):
    """A call without arguments: forward and backward of all losses."""
    draw = cases.Draw(f"step{grid}", GRIDS[grid], dtype, layout)
    drawn = measure.to_device((draw.scores(), draw.scores(), draw.scores(64)))
    variables = tuple(v.requires_grad_() for v in drawn)
    given = (draw.scores(), draw.old_logits(), draw.scores(64), draw.image(), draw.image_labels().float())
    constants = measure.to_device(given)

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(losses(module, variables, constants), variables)

    return call


@pytest.mark.parametrize("implementation", ["wilson", "eager"])
def test_all_losses(benchmark, grid, implementation):
    call = measure.finished(step(ops if implementation == "wilson" else reference, grid))
    with CountOps() as counter:
        call()
    benchmark.group = f"all losses of a step {grid}"
    benchmark.extra_info["ops that reach a kernel"] = counter.count
    benchmark.extra_info["peak extra MB"] = round(measure.peak_extra_bytes(call) / 1e6, 2)
    benchmark.pedantic(call, rounds=measure.rounds_for(call), warmup_rounds=1)
    if implementation == "wilson":
        assert counter.count <= MOST_OPS


def test_all_losses_agree(benchmark, grid):
    for ours, theirs in zip(step(ops, grid)(), benchmark.pedantic(step(reference, grid), rounds=1), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()))

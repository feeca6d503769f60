"""What each patch of wilson.patch saves: `python -m benchmarks.patches` prints the table of docs/drop_in.md.

The library's own code and the patched one take turns in one process, on the same batch and with the same dropout.
`--only NUMBER` measures one line; a library that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import measure
from tests.support import decode_heads
from wilson import patch

BATCH, SIZE = 2, 512
ROUNDS = 3
HEADER = "| patch | what | loss | gradients differ by | time | memory |\n| --- | --- | --- | --- | --- | --- |"


@dataclass(frozen=True)
class Case:
    """A training step as people have it: forward and backward of `model`, which `loss_of` asks for its loss."""

    name: str
    needs: str
    what: str
    patch: Callable[[], Any]
    build: Callable[[], tuple[nn.Module, Callable[[], Tensor]]]


def mask_of(classes: int) -> Tensor:
    mask = torch.randint(0, classes, (BATCH, SIZE, SIZE), device=measure.DEVICE)
    mask[:, :8] = 255
    return mask


def image() -> Tensor:
    return torch.randn(BATCH, 3, SIZE, SIZE, device=measure.DEVICE)


def segformer(classes: int = 150) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The size b0, which is transformers' default."""
    transformers: Any = importlib.import_module("transformers")
    config = transformers.SegformerConfig(num_labels=classes)
    model = transformers.SegformerForSemanticSegmentation(config).to(measure.DEVICE).train()
    x, y = image(), mask_of(classes)
    return model, lambda: model(x, labels=y).loss


def deeplab(classes: int) -> tuple[nn.Module, Callable[[], Tensor]]:
    import segmentation_models_pytorch as smp

    model = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=classes).to(measure.DEVICE).train()
    x, y, loss = image(), mask_of(classes), nn.CrossEntropyLoss(ignore_index=255)
    return model, lambda: loss(model(x), y)


def decode_head(classes: int = 150) -> tuple[nn.Module, Callable[[], Tensor]]:
    """mmsegmentation's SegformerHead on the features of a MiT-b0."""
    with pytest.MonkeyPatch.context() as context:
        decode_heads.put_in("mmsegmentation", context)
        from mmseg.models.decode_heads import SegformerHead
    channels = [32, 64, 160, 256]
    head = SegformerHead(
        in_channels=channels, in_index=[0, 1, 2, 3], channels=256, num_classes=classes, norm_cfg={"type": "BN"}
    )
    head = head.to(measure.DEVICE).train()
    sides = (SIZE // 4, SIZE // 8, SIZE // 16, SIZE // 32)
    features = [torch.randn(BATCH, c, s, s, device=measure.DEVICE) for c, s in zip(channels, sides, strict=True)]
    samples = decode_heads.samples_of(mask_of(classes))
    return head, lambda: head.loss(features, samples, {})["loss_ce"]


CASES = (
    Case(
        "transformers_segformer", "transformers", "SegFormer-b0, 150 classes, whole step",
        patch.transformers_segformer, segformer,
    ),
    Case("mmseg", "mmseg", "SegformerHead, 150 classes, step of the head", patch.mmseg, decode_head),
    Case(
        "smp", "segmentation_models_pytorch", "DeepLabV3+ of ResNet-18, 21 classes, whole step",
        patch.smp, partial(deeplab, 21),
    ),
    Case(
        "smp", "segmentation_models_pytorch", "DeepLabV3+ of ResNet-18, 150 classes, whole step",
        patch.smp, partial(deeplab, 150),
    ),
)  # fmt: skip


def step(model: nn.Module, loss_of: Callable[[], Tensor]) -> tuple[float, list[Tensor]]:
    """The loss and the gradients, which the call alone holds."""
    torch.manual_seed(1)
    model.zero_grad()
    loss = loss_of()
    loss.backward()
    measure.finish()
    return loss.item(), [p.grad for p in model.parameters() if p.grad is not None]


def row(case: Case) -> str:
    """Before and after, as a line of the table."""
    torch.manual_seed(0)
    model, loss_of = case.build()

    def patched() -> tuple[float, list[Tensor]]:
        with case.patch():
            return step(model, loss_of)

    calls: tuple[Callable[[], tuple[float, list[Tensor]]], ...] = (partial(step, model, loss_of), patched)
    losses, gradients = zip(*((loss, [g.clone() for g in grads]) for loss, grads in (c() for c in calls)), strict=True)
    assert abs(losses[0] - losses[1]) < 1e-4 * losses[0], "the patched loss is another one: nothing is timed"
    largest = max(g.abs().max().item() for g in gradients[0])
    apart = max((a - b).abs().max().item() for a, b in zip(*gradients, strict=True)) / largest
    assert apart < 1e-3, "the patched gradients are others: nothing is timed"
    del gradients
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    (before, after), (held, holds) = map(min, seconds), [measure.peak_extra_bytes(call) for call in calls]
    return (
        f"| `{case.name}` | {case.what} | {losses[0]:.6f}, {losses[1]:.6f} | {apart:.0e} "
        f"| {before:.2f} s, {after:.2f} s: {before / after:.1f} times less "
        f"| {held / 1e6:.0f} MB, {holds / 1e6:.0f} MB: {held / holds:.1f} times less |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, choices=range(1, 1 + len(CASES)))
    only = parser.parse_args().only
    torch.set_num_threads(min(2, torch.get_num_threads()))  # as the other benchmarks
    print(f"Batches of {BATCH} images of {SIZE} x {SIZE}; {measure.DEVICE}, torch {torch.__version__}\n\n{HEADER}")
    for case in CASES if only is None else CASES[only - 1 : only]:
        if importlib.util.find_spec(case.needs) is None:
            print(f"| `{case.name}` | {case.needs} is not installed | | | | |")
        else:
            print(row(case), flush=True)


if __name__ == "__main__":
    main()

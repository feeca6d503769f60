"""How it went, without masks: what the model says of photographs that it has not learned from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from wilson import distributed, ops
from wilson.data.loading import Batch
from wilson.methods import Method

APPEARS = 0.005  # share of the pixels from which a class counts as found
LOW = 60.0  # percent of recall or precision, under which there is advice


@torch.no_grad()
def measure(method: Method, batches: Iterable[Batch], names: Sequence[str], old: int) -> dict[str, Any]:
    """Ask whether each new class is found where it should be and only there, and whether old classes stayed.

    Args:
        method: with the model and the old model; in any mode, which is restored afterwards.
        batches: with `image` (B, 3, H, W) and `labels` (B, C-1).
        names: class names by channel, background first.
        old: channels of the old model, background included.

    Returns:
        For each new class: `images` that show it, `precision` and `recall` in percent over the photographs, None where
        nothing was found or there was nothing to find. `agreement`: the share in percent of the pixels outside of new
        classes where the model says what the old one says. `images`: how many there were. `appears`: the share in
        percent of the pixels from which a class counts as found. `advice`: sentences on what may help.
    """
    device = next(method.parameters()).device
    new = len(names) - old
    counts = torch.zeros(3, new, dtype=torch.float64, device=device)  # hit, found, there
    pixels = torch.zeros(3, dtype=torch.float64, device=device)  # unchanged, outside of new classes; images
    training = method.training
    method.eval()
    for batch in batches:
        size = (batch["image"].shape[2], batch["image"].shape[3])
        now = ops.upsampled_argmax(method.model(batch["image"]).logits, size)
        before = ops.upsampled_argmax(method.remember(batch).logits, size)
        share = torch.stack([(now == old + n).flatten(1).double().mean(1) for n in range(new)], 1)
        found, there = share >= APPEARS, batch["labels"][:, old - 1 :] > 0
        counts += torch.stack([(found & there).sum(0), found.sum(0), there.sum(0)])
        outside = now < old
        pixels += torch.stack([((now == before) & outside).sum(), outside.sum(), torch.tensor(len(now), device=device)])
    method.train(training)
    counts, pixels = distributed.total(counts).cpu(), distributed.total(pixels).cpu()

    def percent(part: float, whole: float) -> float | None:
        return round(100 * part / whole, 1) if whole else None

    classes = {
        name: {"images": int(there), "precision": percent(hit, found), "recall": percent(hit, there)}
        for name, (hit, found, there) in zip(names[old:], counts.T.tolist(), strict=True)
    }
    return {
        "images": int(pixels[2]),
        "classes": classes,
        "agreement": percent(pixels[0].item(), pixels[1].item()),
        "appears": 100 * APPEARS,
        "advice": advice(classes),
    }


def advice(classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What may help a class that is found too rarely, or where it is not."""
    lines = []
    for name, of in classes.items():
        if of["recall"] is not None and of["recall"] < LOW:
            lines.append(f"{name} is often missed: give more photographs of it, or more epochs.")
        elif of["precision"] is not None and of["precision"] < LOW:
            lines.append(
                f"{name} is often seen where it is not: give more photographs without it, of what it is taken for."
            )
    return lines


def summary(found: dict[str, Any]) -> str:
    """The figures in one line."""
    parts = [
        f"{name}: recall {_percent(of['recall'])} of {of['images']}, precision {_percent(of['precision'])}"
        if of["images"]
        else f"{name}: none"
        for name, of in found["classes"].items()
    ]
    return f"held out: {'; '.join(parts)}; unchanged on {_percent(found['agreement'])} of the other pixels"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0f} %"

"""Inputs with infinite and undefined numbers, and whether an op gives for them what the reference does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.support import cases
from tests.support.agreement import flat
from wilson.ops import reference

SHAPE = cases.Shape(2, 7, 5, 6, old=4, scale=2.6)
MANY = cases.Shape(1, 300, 3, 5, old=280, scale=2)  # classes that kernels take in blocks
INF, NAN = torch.inf, torch.nan
OPS = (
    "ngwp_focal_pool", "localization_prior_loss", "soft_margin_loss", "one_versus_rest", "merge_pseudo_labels",
    "pseudo_label_loss", "confident_labels", "balanced_cross_entropy", "upsampled_soft_margin_loss",
    "upsampled_cross_entropy", "upsampled_argmax", "prior_loss",
)  # fmt: skip


def _ruled_out(x: Tensor) -> None:
    """The last classes, which no label names."""
    x[:, x.shape[1] - 2 :] = -INF


def _first_ruled_out(x: Tensor) -> None:
    x[:, : x.shape[1] // 3] = -INF


def _one_pixel_of(value: float) -> Callable[[Tensor], None]:
    def change(x: Tensor) -> None:
        x[0, 1, 2, 3] = value

    return change


def _all_of_a_pixel(x: Tensor) -> None:
    x[0, :, 1, 2] = -INF


def _one_left_at_a_pixel(x: Tensor) -> None:
    x[0, :, 1, 2] = -INF
    x[0, 2, 1, 2] = 3.0


CHANGES: dict[str, Callable[[Tensor], None]] = {
    "last_ruled_out": _ruled_out,
    "first_ruled_out": _first_ruled_out,
    "ruled_out_at_a_pixel": _one_pixel_of(-INF),
    "all_ruled_out_at_a_pixel": _all_of_a_pixel,
    "one_left_at_a_pixel": _one_left_at_a_pixel,
    "undefined": _one_pixel_of(NAN),
    "infinite": _one_pixel_of(INF),
}
# The change that most faults of the kernel show in; for other ops, running maxima that begin with -inf
TELLING = {
    "one_versus_rest": "one_left_at_a_pixel",
    "confident_labels": "undefined",
    "upsampled_soft_margin_loss": "last_ruled_out",
    "upsampled_cross_entropy": "last_ruled_out",
    "upsampled_argmax": "undefined",
    "prior_loss": "last_ruled_out",
}
MIXED = ("merge_pseudo_labels", "pseudo_label_loss")  # take a prior
MAPS = {"localization_prior_loss": 2, "pseudo_label_loss": 3, "merge_pseudo_labels": 2}  # first arguments; else one


def of(op: str, shape: cases.Shape = SHAPE, dtype: torch.dtype = torch.float32) -> Iterator[cases.Case]:
    """Every change of every map of scores."""
    for name, change in CHANGES.items():
        for place in range(MAPS.get(op, 1)):
            case = cases.case(op, name, shape, dtype)
            args = list(case.args)
            if "label" in op or op.startswith(("upsampled", "balanced", "merge")):
                args = [_without_the_last(a, shape) for a in args]
            args[place] = args[place].clone()
            change(args[place])
            if op == "confident_labels":  # every class is asked of an image, that with an undefined score, too
                args[1] = args[1].clone()
                args[1][0] = 1
            if op == "soft_margin_loss":  # a target of 0 where a class is ruled out, and one above 0
                args[1] = args[1].clone()
                args[1][:, -1] = 0
                args[1][0] = 0 if name == "last_ruled_out" else args[1][0]
            yield replace(case, name=f"{name}-{place}", args=tuple(args))
            if op in MIXED:
                yield replace(case, name=f"{name}-{place}-prior", args=tuple(args), kwargs=_prior(shape, dtype))
    if op in MIXED:
        case = cases.case(op, "prior", shape, dtype)
        for labels in (torch.zeros, torch.ones):  # which a map takes no part without
            options = _prior(shape, dtype)
            _one_pixel_of(NAN)(options["prior"])
            image_labels = labels(shape.batch, shape.classes - 1)
            yield replace(case, name="undefined-prior", args=(*case.args[:-1], image_labels), kwargs=options)


def _prior(shape: cases.Shape, dtype: torch.dtype) -> dict[str, Any]:
    return {"prior": cases.Draw("prior", shape, dtype).prior(), "prior_weight": 0.5}


def telling(op: str) -> cases.Case:
    """One case for the quick tests."""
    name = TELLING.get(op, "first_ruled_out")
    return next(case for case in of(op) if case.name == f"{name}-0")


def _without_the_last(value: Any, shape: cases.Shape) -> Any:
    """Label maps and image-level labels that do not name the last two classes."""
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 3 and not value.is_floating_point():
        return value.masked_fill((value >= shape.classes - 2) & (value < shape.classes), 0)
    return value


def assert_as_the_reference(case: cases.Case, function: Callable[..., Any], device: str | None = None) -> None:
    """Finite, infinite or undefined where the reference is, and near it; gradients where the loss is finite.

    Between +inf and a number, upsampling gives +inf or NaN, as the kernel blends: a loss is then one of the two.
    """
    expected = flat(case.value_and_grad(getattr(reference, case.op)))
    placed = case if device is None else case.on(device)
    got = [result.to(case.args[0].device) for result in flat(placed.value_and_grad(function))]
    if case.differentiable and not expected[0].isfinite().all():
        expected, got = expected[:-1], got[:-1]
        if case.op.startswith("upsampled"):
            assert not got[0].isfinite()
            return
    for want, have in zip(expected, got, strict=True):
        assert have.dtype == want.dtype and have.shape == want.shape
        if not want.is_floating_point():
            assert torch.equal(have, want)
        else:
            torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5, equal_nan=True)

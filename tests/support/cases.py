"""Inputs of every op, shared by the tests and the benchmarks.

A case is drawn in float64 from a fixed seed, rounded to its dtype, and laid out as its name says; `Case.double()` is
the same values in float64. Every op has cases for layouts, an empty batch, single pixels, odd sizes, 1 to 1000 classes,
extreme logits and, where it reads labels, none present, all ignored and ties. A new op gets its inputs in `INPUTS`,
its least work in `WORK`, and its cases in its family's function.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from wilson import ops
from wilson.ops._registry import OPS

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Shape:
    """(B, C, H, W), of which the first `old` classes are old ones; labels are `scale` times as large."""

    batch: int
    classes: int
    height: int
    width: int
    old: int = 1
    scale: float = 4

    def scaled(self, scale: float | None = None) -> tuple[int, int]:
        scale = self.scale if scale is None else scale
        return max(1, round(self.height * scale)), max(1, round(self.width * scale))

    @property
    def new(self) -> int:
        return self.classes - self.old

    @property
    def pixels(self) -> int:
        """Of all images, at the resolution of the logits; at that of the labels: `label_pixels`."""
        return self.batch * self.height * self.width

    @property
    def label_pixels(self) -> int:
        height, width = self.scaled()
        return self.batch * height * width

    @property
    def scores(self) -> int:
        return self.pixels * self.classes

    @property
    def old_scores(self) -> int:
        return self.pixels * self.old

    @property
    def new_scores(self) -> int:
        return self.pixels * self.new


# The grids of the published settings, and small ones for CI
VOC = Shape(24, 21, 32, 32, old=16, scale=16)
COCO = Shape(12, 81, 56, 56, old=61, scale=8)
SMALL = Shape(4, 21, 16, 16, old=16, scale=4)
# The same for the base step, whose logits go up to the image's size
VOC_BASE = Shape(4, 16, 32, 32, scale=16)
COCO_BASE = Shape(4, 61, 56, 56, scale=8)
SMALL_BASE = Shape(2, 16, 16, 16, scale=8)

SHAPES = {
    "odd": Shape(2, 7, 9, 11, old=4, scale=3.7),
    "long": Shape(3, 21, 37, 41, old=16, scale=2),
    "one_pixel": Shape(3, 5, 1, 1, old=2),
    "one_class": Shape(2, 1, 6, 5, old=1),
    "two_classes": Shape(2, 2, 8, 8, old=1),
    "many_classes": Shape(1, 1000, 5, 7, old=600, scale=1.5),
    "empty_batch": Shape(0, 4, 5, 6, old=2),
    "wide": Shape(1, 3, 1, 300, old=2, scale=1),
    "tiles": Shape(2, 17, 13, 21, old=13, scale=2),
}
# More images, classes or tiles than kernels take at a time
MANY_IMAGES = Shape(1030, 2, 1, 1)
NEVER_WINS = Shape(35, 36, 6, 7, old=2)
WINS_LATE = Shape(1, 33, 46, 46)
MANY_PIXELS = Shape(2, 3, 91, 91)
NEVER_FOUND = Shape(131, 130, 1, 2)
ALIGNED = Shape(2, 7, 8, 8, old=4)
REFINING = ("pamr", "par")  # ops that differ in their affinities alone
PEAKS = Shape(16, 2, 16, 32)
PARTS = Shape(2, 3, 35, 33)
LAYOUTS = ("channels_last", "sliced", "expanded", "transposed")


@dataclass(frozen=True)
class Case:
    """One call of an op: `args` and `kwargs`; the gradient is taken with respect to `args[0]`, if the op has one."""

    op: str
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    @property
    def differentiable(self) -> bool:
        return OPS[self.op].differentiable

    def changed(self, change: Callable[[Tensor], Tensor]) -> Case:
        """The same call of other tensors."""
        args = tuple(change(a) if isinstance(a, Tensor) else a for a in self.args)
        kwargs = {name: change(a) if isinstance(a, Tensor) else a for name, a in self.kwargs.items()}
        return replace(self, args=args, kwargs=kwargs)

    def double(self) -> Case:
        """The same values with every floating tensor in float64."""
        return self.changed(lambda a: a.double() if a.is_floating_point() else a)

    def on(self, device: str | torch.device) -> Case:
        """The same tensors on another device, at the same strides."""
        return self.changed(lambda a: moved(a, device))

    def run(self, function: Callable[..., Any]) -> Any:
        return function(*self.args, **self.kwargs)

    def value_and_grad(self, function: Callable[..., Any], grad_scale: float = 1.0) -> tuple[Any, Tensor | None]:
        """The result, and the gradient of sum(result * fixed random numbers) * grad_scale to the first argument."""
        if not self.differentiable:
            return self.run(function), None
        first = self.args[0].detach().requires_grad_()
        result = function(first, *self.args[1:], **self.kwargs)
        generator = torch.Generator().manual_seed(1)
        weights = torch.randn(result.shape, generator=generator, dtype=torch.float64) * grad_scale
        weights = torch.empty_like(result).copy_(weights)  # lies as the result does, as gradients mostly do
        (grad,) = torch.autograd.grad(result, first, weights)
        return result.detach(), grad


def moved(value: Tensor, device: str | torch.device) -> Tensor:
    """A tensor with the whole of its storage, since `to` alone makes gaps and repeated strides dense."""
    whole = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
    return whole.to(device).as_strided(value.shape, value.stride(), value.storage_offset())


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values in other strides."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    if layout == "sliced":
        big = x.new_full([n + 2 for n in x.shape], float("nan") if x.is_floating_point() else 0)
        inner = big[tuple(slice(1, n + 1) for n in x.shape)]
        inner.copy_(x)
        return inner
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded":
        return x[:1].expand(x.shape) if x.shape[0] else x
    raise ValueError(layout)


class Draw:
    """Random inputs of one shape, reproducible from the case's name."""

    def __init__(self, name: str, shape: Shape, dtype: torch.dtype, layout: str = "contiguous", spread: float = 3.0):
        self.generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        self.shape, self.dtype, self.layout, self.spread = shape, dtype, layout, spread

    def scores(self, classes: int | None = None) -> Tensor:
        s = self.shape
        classes = s.classes if classes is None else classes
        x = torch.randn(s.batch, classes, s.height, s.width, generator=self.generator, dtype=torch.float64)
        return lay_out((x * self.spread).to(self.dtype), self.layout)

    def old_logits(self) -> Tensor:
        return self.scores(self.shape.old)

    def probabilities(self) -> Tensor:
        return lay_out(self.scores().double().softmax(1).to(self.dtype), self.layout)

    def prior_maps(self) -> Tensor:
        """Maps of the new classes, in 0..1."""
        return lay_out(self.scores(self.shape.new).double().sigmoid().to(self.dtype), self.layout)

    def similarity(self) -> Tensor:
        """Between the names of all classes."""
        names = torch.randn(self.shape.classes, 8, generator=self.generator, dtype=torch.float64)
        names = torch.nn.functional.normalize(names)
        return (-2 * (1 - names @ names.T)).exp().to(self.dtype)

    def image(self) -> Tensor:
        s = self.shape
        x = torch.rand(s.batch, 3, s.height, s.width, generator=self.generator, dtype=torch.float64)
        return lay_out(x.to(self.dtype), self.layout)

    def image_labels(self) -> Tensor:
        """New classes only, at random; the dtype varies with the case."""
        s = self.shape
        y = torch.rand(s.batch, s.classes - 1, generator=self.generator) < 0.6
        y[:, : s.old - 1] = False
        return y if s.height % 2 else y.to(torch.float32)

    def edge(self) -> Tensor:
        """Of each pixel, in 0..1: none at a few and impassable at others."""
        s = self.shape
        x = torch.rand(s.batch, s.height, s.width, generator=self.generator, dtype=torch.float64)
        return lay_out((x * 1.4 - 0.2).clamp(0, 1).to(self.dtype), self.layout)

    def prior(self) -> Tensor:
        """Maps of the new classes, in 0..1."""
        s = self.shape
        x = torch.rand(s.batch, s.classes - s.old, s.height, s.width, generator=self.generator, dtype=torch.float64)
        return lay_out(x.to(self.dtype), self.layout)

    def label_map(self, scale: float | None = None) -> Tensor:
        """Classes, ignored pixels, and values that are no class."""
        s = self.shape
        size = (s.batch, *s.scaled(scale))
        labels = torch.randint(0, s.classes, size, generator=self.generator)
        labels[torch.rand(size, generator=self.generator) < 0.1] += 2**32  # a class to whoever reads 32 bits
        labels[torch.rand(size, generator=self.generator) < 0.1] = s.classes
        labels[torch.rand(size, generator=self.generator) < 0.1] = -1
        return lay_out(labels, self.layout)


def takes(op: str, shape: Shape) -> bool:
    """Whether maps of this shape are inputs of an op: some refuse a map of one class, or without a new one."""
    return shape.classes >= {"one_versus_rest": 2}.get(op, 1) and shape.new >= {"prior_loss": 1}.get(op, 0)


def shapes_of(op: str) -> dict[str, Shape]:
    """Those that the op takes."""
    return {name: shape for name, shape in SHAPES.items() if takes(op, shape)}


def _layouts(op: str, dtype: torch.dtype) -> Iterator[Case]:
    """The cases that every op has."""
    for name, shape in shapes_of(op).items():
        yield case(op, name, shape, dtype)
    for layout in LAYOUTS:
        yield case(op, layout, SHAPES["odd"], dtype, layout=layout)
    yield case(op, "column", Shape(2, 3, 90, 1, old=2, scale=1), dtype, layout="transposed")
    for name, spread in (("extreme", 1e4), ("flat", 0.0)):  # flat: every class ties
        yield case(op, name, SHAPES["odd"], dtype, spread=spread)


def _confident(d: Draw) -> tuple:
    refined = (d.probabilities().double() * 256).round() / 256  # exactly representable in every dtype
    return lay_out(refined.to(d.dtype), d.layout), d.image_labels()


def _balanced(d: Draw) -> tuple:
    """Labels that make every image count: the background and the labelled classes, each at one pixel or more."""
    s = d.shape
    image_labels = d.image_labels()
    for shown in image_labels:
        shown[shown.nonzero().flatten()[s.height * s.width - 1 :]] = 0  # no more classes than pixels
    able = torch.cat([torch.ones(s.batch, 1), image_labels.float()], 1)
    labels = d.label_map(1).contiguous()
    for b in range(s.batch):
        classes = able[b].nonzero().flatten()
        drawn = classes[torch.randint(0, len(classes), (s.height, s.width), generator=d.generator)]
        drawn.view(-1)[: len(classes)] = classes[: s.height * s.width]
        skipped = (labels[b] < 0) | (labels[b] >= s.classes)
        skipped.view(-1)[: len(classes)] = False
        labels[b] = torch.where(skipped, labels[b], drawn)
    labels = lay_out(labels, d.layout)
    one_hot = torch.nn.functional.one_hot(labels.clamp(-1, s.classes) + 1, s.classes + 2)[..., 1:-1]
    return d.scores(), labels, one_hot.flatten(1, 2).sum(1), image_labels


INPUTS: dict[str, Callable[[Draw], tuple]] = {  # op: its positional arguments
    "ngwp_focal_pool": lambda d: (d.scores(),),
    "localization_prior_loss": lambda d: (d.scores(), d.old_logits()),
    "soft_margin_loss": lambda d: (d.scores(), d.probabilities()),
    "merge_pseudo_labels": lambda d: (d.scores(), d.old_logits(), d.image_labels()),
    "pseudo_label_loss": lambda d: (d.scores(), d.scores(), d.old_logits(), d.image_labels()),
    "pamr": lambda d: (d.image(), d.probabilities()),
    "par": lambda d: (d.image(), d.probabilities()),
    "random_walk": lambda d: (d.scores(), d.edge()),
    "confident_labels": _confident,
    "balanced_cross_entropy": _balanced,
    "upsampled_soft_margin_loss": lambda d: (d.scores(), d.label_map()),
    "upsampled_cross_entropy": lambda d: (d.scores(), d.label_map()),
    "upsampled_argmax": lambda d: (d.scores(), d.shape.scaled()),
    "one_versus_rest": lambda d: (d.scores(),),
    "prior_loss": lambda d: (d.scores(), d.image_labels()),
}
# Thresholds of 1/2 and 1/4 of the peak, so that no rounding decides
WALK_STEPS = 8
EXACT_THRESHOLDS = {"background_ratio": 0.5, "class_ratio": 0.25, "floor": 0.125}
KEYWORDS: dict[str, Callable[[Draw], dict[str, Any]]] = {  # op: what it must be given by name
    "confident_labels": lambda d: dict(EXACT_THRESHOLDS),
    "random_walk": lambda d: {"steps": WALK_STEPS},  # not 256: eager PyTorch and the emulator take as long as they must
    "prior_loss": lambda d: {"maps": d.prior_maps()},
}


@dataclass(frozen=True)
class Work:
    """What forward and backward of one call do at least: exponentials, multiply-adds where they rule, bytes."""

    exps: int
    multiply_adds: int
    reads: int  # bytes
    writes: int  # bytes

    @property
    def bytes(self) -> int:
        return self.reads + self.writes

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))


ITERATIONS = 10  # of PAMR and PAR
LINKS = 34  # of a pixel in the random walk, to half its neighbours

# Counts of the formulas in float32 with int64 labels, not of an implementation: each input is read once in forward, the
# gradient written once
WORK: dict[str, Callable[[Shape], Work]] = {
    "ngwp_focal_pool": lambda s: Work(2 * s.scores, 0, 4 * s.scores, 4 * s.scores),
    "localization_prior_loss": lambda s: Work(4 * s.old_scores, 0, 4 * 2 * s.old_scores, 4 * s.scores),
    "soft_margin_loss": lambda s: Work(2 * s.scores, 0, 4 * 2 * s.scores, 4 * s.scores),
    "merge_pseudo_labels": lambda s: Work(s.scores + s.old_scores, 0, 4 * (s.scores + s.old_scores), 4 * s.scores),
    "pseudo_label_loss": lambda s: Work(
        2 * s.scores + s.old_scores, 0, 4 * (2 * s.scores + s.old_scores), 4 * s.scores
    ),
    "pamr": lambda s: _refining(s, neighbours=40),
    "par": lambda s: _refining(s, neighbours=48),
    # a power counts as two exponentials
    "random_walk": lambda s: Work(
        2 * LINKS * s.pixels, WALK_STEPS * 2 * LINKS * s.scores, 4 * (s.pixels + s.scores), 4 * s.scores
    ),
    "confident_labels": lambda s: Work(0, 0, 4 * s.scores, 8 * s.pixels),
    "balanced_cross_entropy": lambda s: Work(2 * s.scores, 0, 4 * s.scores + 8 * s.pixels, 4 * s.scores),
    "upsampled_soft_margin_loss": lambda s: _upsampled_loss(s),
    "upsampled_cross_entropy": lambda s: _upsampled_loss(s),
    "upsampled_argmax": lambda s: Work(0, 2 * s.label_pixels * s.classes, 4 * s.scores, s.label_pixels),
    # a logarithm counts as an exponential
    "one_versus_rest": lambda s: Work(3 * s.scores, 0, 4 * 2 * s.scores, 4 * 2 * s.scores),
    "prior_loss": lambda s: Work(2 * s.new_scores, 0, 4 * 2 * s.new_scores, 4 * s.scores),
}


def _refining(s: Shape, neighbours: int) -> Work:
    each_pass = neighbours * s.scores
    return Work(neighbours * s.pixels, ITERATIONS * each_pass, 4 * (3 * s.pixels + s.scores), 4 * s.scores)


def _upsampled_loss(s: Shape) -> Work:
    at_labels = s.label_pixels * s.classes
    return Work(at_labels, 2 * at_labels, 4 * s.scores + 8 * s.label_pixels, 4 * s.scores)


def case(op: str, name: str, shape: Shape, dtype: torch.dtype, **options: Any) -> Case:
    """One case of an op; `options` are those of :class:`Draw`."""
    draw = Draw(f"{op}{name}", shape, dtype, **options)
    args, kwargs = INPUTS[op](draw), KEYWORDS[op](draw) if op in KEYWORDS else {}
    if shape.classes > 255 and "ignore_index" in inspect.signature(getattr(ops, op)).parameters:
        kwargs["ignore_index"] = -1  # 255, the default, is a class
    return Case(op, name, args, kwargs)


def pooling(dtype: torch.dtype) -> Iterator[Case]:
    op = "ngwp_focal_pool"
    yield from _layouts(op, dtype)
    scores = Draw("options", SHAPES["odd"], dtype).scores()
    yield Case(op, "no_focal", (scores,), {"focal": False})
    yield Case(op, "options", (scores,), {"eps": 1e-5, "gamma": 2.5, "lam": 0.1})
    yield Case(op, "gamma_one", (scores,), {"gamma": 1.0})
    yield case(op, "many_pixels", MANY_PIXELS, dtype)


def soft_margin(dtype: torch.dtype) -> Iterator[Case]:
    yield from _layouts("localization_prior_loss", dtype)
    yield from _layouts("soft_margin_loss", dtype)
    draw = Draw("weights", SHAPES["odd"], dtype)
    args = (draw.scores(), draw.probabilities())
    yield Case("soft_margin_loss", "image_weight", args, {"image_weight": torch.tensor([1.0, 0.25])})
    yield Case("soft_margin_loss", "no_image_counts", args, {"image_weight": torch.zeros(2, dtype=dtype)})
    draw = Draw("weighted_parts", PARTS, dtype)  # each part has the weight of its image
    args = (draw.scores(), draw.probabilities())
    yield Case("soft_margin_loss", "weighted_parts", args, {"image_weight": torch.tensor([1.0, 0.25])})
    draw = Draw("many_images", MANY_IMAGES, dtype)
    weight = torch.rand(MANY_IMAGES.batch, generator=draw.generator).to(dtype)
    yield Case("soft_margin_loss", "many_images", (draw.scores(), draw.probabilities()), {"image_weight": weight})


def pseudo_labels(dtype: torch.dtype) -> Iterator[Case]:
    merge, loss = INPUTS["merge_pseudo_labels"], INPUTS["pseudo_label_loss"]
    draw = Draw("merge", SHAPES["odd"], dtype)
    yield from _layouts("merge_pseudo_labels", dtype)
    yield from _layouts("pseudo_label_loss", dtype)
    for name, options in (
        ("hard", {"alpha": 1.0}),
        ("soft", {"alpha": 0.0}),
        ("weighted_background", {"background": 0.25}),
        ("localizer_background", {"background": 1}),
    ):
        yield Case("merge_pseudo_labels", name, merge(draw), options)
        yield Case("pseudo_label_loss", name, loss(draw), options)
    logits, scores, old, labels = loss(draw)
    yield Case("pseudo_label_loss", "no_label", (logits, scores, old, torch.zeros_like(labels)), {"alpha": 1.0})
    yield Case("pseudo_label_loss", "all_labels", (logits, scores, old, torch.ones_like(labels)))
    yields: dict[str, Any] = {"old_yields": True}
    for op, inputs in (("merge_pseudo_labels", merge), ("pseudo_label_loss", loss)):
        *maps, labels = inputs(draw)
        yield Case(op, "old_yields", (*maps, torch.ones_like(labels)), yields)  # to new classes, whatever old ones show
        yield Case(op, "old_yields_hard", inputs(draw), yields | {"alpha": 1.0, "background": 0.25})
        yield Case(op, "shares", (*maps, labels * 0.25))  # labels multiply, whatever they are
        many = Draw("many_yield", SHAPES["many_classes"], dtype, "channels_last")
        yield Case(op, "many_yield", inputs(many), yields)
        yield from _priors(op, dtype)
    yield case("pseudo_label_loss", "many_images", MANY_IMAGES, dtype)
    yield Case("pseudo_label_loss", "weighted_parts", _weighted_parts(dtype), {"alpha": 1.0})
    for name, args in (("never_wins", _never_wins(dtype)), ("wins_late", _wins_late(dtype))):
        yield Case("merge_pseudo_labels", name, args[1:], {"alpha": 1.0})
        yield Case("pseudo_label_loss", name, args, {"alpha": 1.0})


def mixed(op: str, name: str, shape: Shape, dtype: torch.dtype, layout: str = "contiguous", **options: Any) -> Case:
    """One case of an op that takes a prior, with one; `options` are keywords of the op."""
    draw = Draw(f"{op}{name}", shape, dtype, layout)
    return Case(op, name, INPUTS[op](draw), {"prior": draw.prior(), "prior_weight": 0.3, **options})


def _priors(op: str, dtype: torch.dtype) -> Iterator[Case]:
    odd = SHAPES["odd"]
    yield mixed(op, "prior", odd, dtype)
    for layout in LAYOUTS:
        yield mixed(op, f"prior_{layout}", odd, dtype, layout)
    for shape in ("long", "one_pixel", "two_classes", "many_classes", "empty_batch"):
        old_yields = shape == "many_classes"
        yield mixed(op, f"prior_{shape}", SHAPES[shape], dtype, "channels_last", old_yields=old_yields)
    yield mixed(op, "prior_hard", odd, dtype, alpha=1.0, background=0.25, old_yields=True)
    yield mixed(op, "prior_alone", odd, dtype, alpha=0.7, prior_weight=1.0)
    yield mixed(op, "prior_without_weight", odd, dtype, prior_weight=0.0)
    labelled = mixed(op, "prior_yields", odd, dtype, old_yields=True)
    *maps, labels = labelled.args
    prior = labelled.kwargs["prior"]
    yield replace(labelled, args=(*maps, torch.ones_like(labels)))  # old classes are in the arg-max, too
    yield replace(labelled, name="prior_no_label", args=(*maps, torch.zeros_like(labels)))
    yield replace(labelled, name="prior_shares", args=(*maps, labels * 0.25))
    yield replace(labelled, name="prior_in_double", kwargs=labelled.kwargs | {"prior": prior.double()})
    # maps that are moved many numbers at a time: with the prior, and but for the prior
    aligned = mixed(op, "prior_aligned", ALIGNED, dtype)
    other = aligned.kwargs["prior"].to(torch.float16 if dtype == torch.float32 else torch.float32)
    yield aligned
    yield replace(aligned, name="prior_of_other_dtype", kwargs=aligned.kwargs | {"prior": other})
    aligned = mixed(op, "prior_of_other_layout", ALIGNED, dtype, "channels_last")
    yield replace(aligned, kwargs=aligned.kwargs | {"prior": aligned.kwargs["prior"].contiguous()})
    ties = (prior > 0.6).to(dtype) / 2  # 1/2 of several classes, and of the background then
    yield replace(labelled, name="prior_ties", kwargs={"prior": ties, "prior_weight": 1.0})


def _won(draw: Draw, last_first: bool = False) -> tuple[Tensor, Tensor]:
    """Scores and labels where every class is labelled, and wins at the pixel of its number, counted from either end."""
    s = draw.shape
    scores, pixels = draw.scores().flatten(2), torch.arange(s.height * s.width)
    classes = torch.arange(s.classes)
    scores[:, classes, pixels.flip(0)[classes] if last_first else classes] = 30
    return scores.view(s.batch, s.classes, s.height, s.width), torch.ones(s.batch, s.classes - 1)


def _never_wins(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Images that each lack one new class, so that their weight is 0 for its sake alone; and one that lacks none."""
    draw = Draw("never_wins", NEVER_WINS, dtype)
    (scores, labels), old = _won(draw), NEVER_WINS.old
    lacking = torch.arange(NEVER_WINS.batch - 1)
    scores[lacking, old + lacking] = -30
    return draw.scores(), scores, draw.old_logits(), labels


def _weighted_parts(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Two images of several parts, of which one counts."""
    draw = Draw("weighted_parts", PARTS, dtype)
    scores, labels = _won(draw)
    scores[1, -1] = -30
    return draw.scores(), scores, draw.old_logits(), labels


def _wins_late(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """One image, in whose last pixels alone the new classes win."""
    draw = Draw("wins_late", WINS_LATE, dtype)
    scores, labels = _won(draw, last_first=True)
    scores[:, 1:].flatten(2)[:, :, : -WINS_LATE.classes] -= 60
    return draw.scores(), scores, draw.old_logits(), labels


def pamr(dtype: torch.dtype) -> Iterator[Case]:
    for op in REFINING:
        yield from _layouts(op, dtype)
        draw = Draw(op, SHAPES["odd"], dtype)
        options = {"iterations": 2, "dilations": [3]}
        yield Case(op, "options", (draw.image(), draw.probabilities()), options)
        small = Draw(f"{op}_resized", Shape(2, 7, 5, 6), dtype).probabilities()
        yield Case(op, "resized", (draw.image(), small), {"iterations": 3})
        labels = draw.image_labels()
        yield Case(op, "labelled", (draw.image(), draw.probabilities()), {"image_labels": labels, "iterations": 3})
        yield Case(op, "labelled_resized", (draw.image(), small), {"image_labels": labels.int(), "iterations": 2})
        yield Case(op, "no_label", (draw.image(), small), {"image_labels": labels.to(dtype) * 0, "iterations": 1})
        many = {"iterations": 1, "dilations": [1, 2, 3, 4, 5, 6, 7, 9, 11, 30]}  # more than a block has warps for
        yield Case(op, "many_dilations", (draw.image(), draw.probabilities()), many)
        yield Case(op, "alike", (_alike(draw), draw.probabilities()), {"iterations": 2})


def _alike(draw: Draw) -> Tensor:
    """Colours that every dtype holds, of which many neighbours share one, and of the first image all; but for a few
    pixels, whose squared differences are up to 1e17 times the variance that PAR divides them by, were it not for the
    1e-8."""
    s = draw.shape
    image = torch.randint(0, 4, (s.batch, 3, s.height, s.width), generator=draw.generator).double() / 256
    image[0] = 0.25
    image[:, 2] = 0
    image[:, 2, 4, 5] = 0.5
    image[:, :, 1, 2] = 1
    image[:, :2, 6, 8] += 1 / 256
    return image.to(draw.dtype)


def walk(dtype: torch.dtype) -> Iterator[Case]:
    op = "random_walk"
    yield from _layouts(op, dtype)
    draw = Draw("walk", SHAPES["odd"], dtype)
    scores, edge = draw.scores(), draw.edge()
    for name, options in (
        ("stays", {"steps": 0}),
        ("one_step", {"steps": 1, "beta": 0.5}),
        ("odd_steps", {"steps": 13, "radius": 3, "beta": 2.5}),
        ("near", {"steps": 3, "radius": 2}),
        ("alone", {"steps": 3, "radius": 1}),
        ("far", {"steps": 3, "radius": 8, "beta": 4.0}),
    ):
        yield Case(op, name, (scores, edge), options)
    smooth = (draw.edge().double() * 0.1).to(dtype)  # so that all is mixed
    yield Case(op, "smooth", (scores, smooth[:, None]), {"steps": 20})
    yield Case(op, "edge_in_double", (scores, edge.double()), {"steps": 2})


def confident(dtype: torch.dtype) -> Iterator[Case]:
    draw = Draw("pamr", SHAPES["odd"], dtype)
    yield from _layouts("confident_labels", dtype)
    yield _peaks_apart(dtype)
    yield _peaks_anywhere(dtype)
    refined, image_labels = _confident(Draw("shares", SHAPES["odd"], dtype))
    yield Case("confident_labels", "shares", (refined, image_labels * 0.25), EXACT_THRESHOLDS)
    yield from _layouts("balanced_cross_entropy", dtype)
    scores, labels, counts, image_labels = _balanced(draw)
    no_image = (labels, counts, torch.ones_like(image_labels))  # more labels than classes found
    yield Case("balanced_cross_entropy", "no_image_counts", (scores, *no_image))
    ignored = (torch.full_like(labels, 255), torch.zeros_like(counts), torch.zeros(2, 6, dtype=torch.int32))
    yield Case("balanced_cross_entropy", "all_ignored", (scores, *ignored))
    yield _never_found(dtype)


def _peaks_apart(dtype: torch.dtype) -> Case:
    """Large maps whose classes are highest by far at one pixel each, so that each part of the map decides once."""
    draw = Draw("peaks_apart", MANY_PIXELS, dtype)
    refined = (draw.probabilities().double() * 64).round() / 256
    for b, pixels in enumerate(((200, 4256, -1), (0, 6464, 8128))):
        for c, pixel in enumerate(pixels):
            refined[b].flatten(1)[c, pixel] = 1
    return Case("confident_labels", "peaks_apart", (refined.to(dtype), torch.ones(2, 2)), EXACT_THRESHOLDS)


def _peaks_anywhere(dtype: torch.dtype) -> Case:
    """The same of small maps, whose peaks lie in another row of 32 pixels in each image."""
    draw = Draw("peaks_anywhere", PEAKS, dtype)
    refined = (draw.probabilities().double() * 64).round() / 256
    image = torch.arange(PEAKS.batch)
    refined[image, 0, image, 7] = refined[image, 1, image.flip(0), 23] = 1
    return Case("confident_labels", "peaks_anywhere", (refined.to(dtype), torch.ones(PEAKS.batch, 1)), EXACT_THRESHOLDS)


def _never_found(dtype: torch.dtype) -> Case:
    """Images that do not count since one labelled class, or the background, has no pixel; and one that counts."""
    draw = Draw("never_found", NEVER_FOUND, dtype)
    images, classes = NEVER_FOUND.batch, NEVER_FOUND.classes
    counts = torch.randint(1, 9, (images, classes), generator=draw.generator)
    counts[:-1].fill_diagonal_(0)
    labels = torch.randint(0, classes, (images, 1, 2), generator=draw.generator)
    args = draw.scores(), labels, counts, torch.ones(images, classes - 1)
    return Case("balanced_cross_entropy", "never_found", args)


def upsampled(dtype: torch.dtype) -> Iterator[Case]:
    draw = Draw("upsampled", SHAPES["odd"], dtype)
    for op in ("upsampled_soft_margin_loss", "upsampled_cross_entropy"):
        yield from _layouts(op, dtype)
        labels = draw.label_map()
        yield Case(op, "all_ignored", (draw.scores(), torch.full_like(labels, 3)), {"ignore_index": 3})
        yield Case(op, "uint8", (draw.scores(), labels.clamp(0, 255).to(torch.uint8)))
        yield Case(op, "smaller", (draw.scores(), draw.label_map(0.6)))
    yield case("upsampled_cross_entropy", "many_images", MANY_IMAGES, dtype)
    yield from _layouts("upsampled_argmax", dtype)
    yield from aligned_corners(dtype)


def aligned_corners(dtype: torch.dtype) -> Iterator[Case]:
    """Sides that are multiples or not, equal, smaller, of one pixel, and far apart."""
    sides = ((5, 7), (33, 20)), ((4, 1), (9, 6)), ((1, 3), (1, 40)), ((6, 6), (6, 3)), ((2, 2), (90, 150))
    for (height, width), large in sides:
        draw = Draw("aligned_corners", Shape(2, 5, height, width), dtype)
        labels = torch.randint(0, 6, (2, *large), generator=draw.generator)  # 5 is no class
        name, aligned = f"aligned_{height}x{width}", {"align_corners": True}
        for op in ("upsampled_soft_margin_loss", "upsampled_cross_entropy"):
            yield Case(op, name, (draw.scores(), labels), aligned)
        yield Case("upsampled_argmax", name, (draw.scores(), large), aligned)


def one_versus_rest(dtype: torch.dtype) -> Iterator[Case]:
    op = "one_versus_rest"
    yield from _layouts(op, dtype)
    scores = Draw("sure", SHAPES["odd"], dtype).scores()
    yield Case(op, "ties", (scores.div(3).round(),))  # of two classes and more, at the top and below it
    sure = torch.zeros_like(scores)
    sure[:, 2] = 1e4
    sure[:, 3] = -1e4
    yield Case(op, "sure", (scores + sure,))
    yield Case(op, "sure_of_two", (scores + sure + sure.roll(2, 1),))


def prior(dtype: torch.dtype) -> Iterator[Case]:
    op = "prior_loss"
    yield from _layouts(op, dtype)
    yield case(op, "many_images", MANY_IMAGES, dtype)
    draw = Draw("prior", SHAPES["odd"], dtype)
    scores, labels, maps = draw.scores(), draw.image_labels(), draw.prior_maps()
    yield Case(op, "no_label", (scores, torch.zeros_like(labels)), {"maps": maps})
    yield Case(op, "shares", (scores, labels * 0.25), {"maps": maps})  # labels multiply, whatever they are
    yield Case(op, "labels_of_new", (scores, labels[:, -SHAPES["odd"].new :]), {"maps": maps.round()})
    for name, shape in shapes_of(op).items():
        yield _by_names(name, Draw(f"names_{name}", shape, dtype))
    for layout in LAYOUTS:
        yield _by_names(layout, Draw(f"names_{layout}", SHAPES["odd"], dtype, layout))
    ties = _by_names("ties", Draw("names_ties", SHAPES["odd"], dtype))
    ties.kwargs["old_logits"].mul_(0.3).round_()
    yield ties
    odd = _by_names("infinite", Draw("names_infinite", SHAPES["odd"], dtype))
    logits = odd.kwargs["old_logits"].flatten(2)
    logits[:, 2, 0] = logits[:, 3, 0] = logits[:, 1, 1] = torch.nan  # the first of them is the highest
    logits[:, 0, 1] = logits[:, 2, 2] = torch.inf
    logits[:, :, 3] = logits[:, :2, 4] = -torch.inf
    yield odd


def _by_names(name: str, draw: Draw) -> Case:
    """The targets from the classes that the old model sees."""
    args, similarity, old = INPUTS["prior_loss"](draw), draw.similarity(), draw.old_logits()
    return Case("prior_loss", f"names_{name}", args, {"similarity": similarity, "old_logits": old})


FAMILIES: dict[str, Callable[[torch.dtype], Iterator[Case]]] = {
    "pooling": pooling,
    "soft_margin": soft_margin,
    "pseudo_labels": pseudo_labels,
    "pamr": pamr,
    "walk": walk,
    "confident": confident,
    "upsampled": upsampled,
    "one_versus_rest": one_versus_rest,
    "prior": prior,
}


def every(dtype: torch.dtype) -> list[Case]:
    return [case for family in FAMILIES.values() for case in family(dtype)]

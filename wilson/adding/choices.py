"""Settings for a step on a model and photographs of any kind, with the reason for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from torch import nn

from wilson.config import Config, DataConfig, ModelConfig, StepConfig
from wilson.config.options import Optimizer
from wilson.data.images import how_stored
from wilson.data.sources.base import ImageSource
from wilson.errors import UserError
from wilson.models import SegmentationModel

from .subject import Subject

# Of the feature map: crops of 512 have it at stride 16. Features of a finer map of a Unet hold what a coarser one has
# lost of small patterns (new classes 50 in place of 41 on the built-in data).
WIDTH = 32
LEAST_WIDTH = 16  # on a coarser map the localizer finds no outlines
LEAP = 4  # a map so many times finer is sixteen times the localizer's work: taken only where the own one is too coarse
LARGEST = 512  # side of a crop in pixels
SAMPLE = 200  # photographs whose size is looked at
BATCH = 16
NEGATIVES = 0.25  # share of a batch
LEAST = 3  # images of a batch with negatives: in a smaller one the share is no place
ITERATIONS = 1200  # to reach with small sets of photographs; at half of them the localizer is still learning
LEAST_EPOCHS, MOST_EPOCHS = 8, 300  # with 30 photographs, 300 epochs in place of 60 gave new classes 26 in place of 19
WARM = 0.25  # share of the epochs
LARGE = 1_500_000  # parameters: such a network was trained for long, and moves in small steps
STEADY = 8  # images of a batch, below which batch-norm keeps the statistics that it has
# Learning rates of encoder, and of head and localizer
RATES = {
    ("sgd", True): (0.001, 0.01),
    ("sgd", False): (0.02, 0.1),
    ("adamw", True): (6e-5, 6e-4),
    ("adamw", False): (1e-3, 2e-3),
}


@dataclass(frozen=True)
class Choices:
    """The configuration of a step, and why each setting is what it is."""

    config: Config
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Given:
    """What a user sets himself; None leaves the choice.

    Raises:
        UserError: crop, epochs or batch is under 1.
    """

    crop: int | None = None
    epochs: int | None = None
    batch: int | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = 2

    def __post_init__(self) -> None:
        for name, value in (("crop", self.crop), ("epochs", self.epochs), ("batch", self.batch)):
            if value is not None and value < 1:
                raise UserError(f"{name}: expected 1 or more, got {value}; leave it out to have it chosen")


def choose(
    network: SegmentationModel, stride: int, parameters: int, crop: tuple[int, str], training: ImageSource,
    negatives: ImageSource | None, given: Given,
) -> Choices:  # fmt: skip
    """Choose the settings of a step.

    Args:
        network: the model.
        stride: pixels of the image per pixel of its features.
        parameters: numbers of the model that take part in its output.
        crop: side of the crops, and why, as :func:`crop_for` gives them.
        training, negatives: the photographs.
        given: what the user chose.

    Raises:
        UserError: the user's batch has no place for photographs of both kinds.
    """
    side, why = crop
    width = side // stride
    advice = ": expect coarse outlines, or give larger photographs"
    coarse = f", fewer than {LEAST_WIDTH}{advice}" if width < LEAST_WIDTH else ""
    reasons = [
        f"Crops of {side} pixels: {why}.",
        f"The new classes are found on a map of {width} x {width} features of stride {stride}{coarse}.",
    ]
    own = len(training.names)
    least = 2 if negatives is None else LEAST
    if given.batch is not None and given.batch < LEAST and negatives is not None:
        raise UserError(
            f"batch: with photographs without the new classes a batch needs {LEAST} images or more, got {given.batch}; "
            "choose a larger one (--batch)"
        )
    batch = given.batch or next((size for size in range(BATCH, least, -1) if _own(size, negatives) <= own), least)
    reasons.append(
        f"Batches of {counted(batch, 'image')}"
        + (f", {batch - _own(batch, negatives)} of them without the new classes" if negatives is not None else "")
        + ("." if given.batch or batch == BATCH else f": there are {own} photographs of the new classes.")
    )
    per_epoch = max(1, own // _own(batch, negatives))
    epochs = given.epochs or max(LEAST_EPOCHS, min(MOST_EPOCHS, round(ITERATIONS / per_epoch)))
    warmup = max(1, round(WARM * epochs)) if epochs > 1 else 0
    reasons.append(
        f"{counted(epochs, 'epoch')} of {counted(per_epoch, 'iteration')}"
        + (", as you said" if given.epochs else _aim(epochs))
        + "."
        + (f" In the first {'one' if warmup == 1 else warmup} only the localizer learns." if warmup else "")
    )
    kind, large = _optimizer(network), parameters >= LARGE
    lr_encoder, lr_head = RATES[kind, large]
    family = "layer norm, as transformers have it" if kind == "adamw" else "batch-norm, as convolutional ones have it"
    size = "large, and moves in small steps" if large else "small, and takes large steps"
    reasons.append(
        f"{'AdamW' if kind == 'adamw' else 'SGD'}, because the network has mostly {family}; rates {lr_encoder:g} for "
        f"the encoder and {lr_head:g} for the rest, because it is {size}."
    )
    freeze = batch < STEADY
    if freeze:
        reasons.append(f"Batch-norm keeps its statistics, because batches are smaller than {STEADY}.")
    channels = max(64, min(256, network.feature_channels))
    config = Config(
        recipe="own",
        seed=given.seed,
        device=given.device,
        data=DataConfig(root="photographs", crop=side, workers=given.workers, negative_share=NEGATIVES),
        model=ModelConfig(
            backbone="given", weights="none", stride=stride, localizer_channels=channels
        ),
        step=StepConfig(
            epochs=epochs, warmup=warmup, batch=batch, lr_encoder=lr_encoder, lr_head=lr_head, optimizer=kind,
            freeze_norm=freeze, weight_decay=1e-2 if kind == "adamw" else 1e-4,
        ),
        evaluate_every=max(1, epochs // 4),
    )  # fmt: skip
    return Choices(config, tuple(reasons))


def _aim(epochs: int) -> str:
    """Why so many epochs were chosen."""
    if LEAST_EPOCHS < epochs < MOST_EPOCHS:
        return f", for {ITERATIONS} iterations or so"
    return f", the {'least' if epochs == LEAST_EPOCHS else 'most'} that are chosen"


def _own(batch: int, negatives: ImageSource | None) -> int:
    """Places of a batch that photographs of the new classes take, as the sampler divides it."""
    return batch if negatives is None else batch - round(NEGATIVES * batch)


def counted(count: int, what: str) -> str:
    """A number of things in words: 1 epoch, 2 epochs."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def crop_for(
    stride: int, side: int | None, training: ImageSource, given: Given, reason: str = "the model takes no other size"
) -> tuple[int, str]:
    """The side of the crops, and why. It keeps the size at which things are seen, which the old model knows.

    Args:
        stride: pixels of the image per pixel of the features.
        side: the side that images should have; None where any will do.
        training: the photographs.
        given: what the user chose.
        reason: why they should have that side.
    """
    if given.crop is not None:
        return given.crop, "as you said"
    if side is not None:
        return side, reason
    short = round(median(_short_sides(training)))
    crop = max(stride, min(short, LARGEST) // stride * stride)
    if short > LARGEST:
        return crop, f"enough of photographs whose short side is {short} pixels, the median"
    return crop, f"the short side of the photographs, {short} pixels in the median, so that things keep their size"


def with_fine_features(subject: Subject, crop: int) -> Subject:
    """The model with a map of features that is fine enough on a crop, which may be the one that it has."""
    width = crop // subject.stride
    if width >= WIDTH:
        return subject
    finer = subject.finer(crop // WIDTH)
    return finer if width < LEAST_WIDTH or subject.stride < LEAP * finer.stride else subject


def _short_sides(source: ImageSource) -> Sequence[int]:
    step = max(1, len(source.names) // SAMPLE)
    sizes = [how_stored(source.files(index)[0]).size for index in range(0, len(source.names), step)]
    return [min(size) for size in sizes if size is not None] or [LARGEST]


def _optimizer(network: nn.Module) -> Optimizer:
    norms = [module for module in network.modules() if "norm" in type(module).__name__.lower()]
    layer = sum("layernorm" in type(module).__name__.lower() for module in norms)
    return "adamw" if 2 * layer > len(norms) else "sgd"

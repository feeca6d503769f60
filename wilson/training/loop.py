"""The training loop: one step of a task, for every method alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wilson import distributed
from wilson.config import Config, StepConfig
from wilson.data.dataset import StepDataset
from wilson.data.loading import Batch, batches, make_loader
from wilson.data.transforms import Normalization
from wilson.errors import UserError
from wilson.methods import Method
from wilson.run_folder import StepFolder

from . import seeds
from .best import Best
from .computing import autocast_dtype, prepared
from .cost import Cost
from .log import Log
from .optimizer import make_optimizer
from .state import TrainingState

T = TypeVar("T")


def fit(
    method: Method,
    dataset: StepDataset,
    config: Config,
    settings: StepConfig,
    folder: StepFolder,
    normalization: Normalization,
    evaluate: Callable[[Any, int], Any],
    cost: Cost,
    *,
    resume: bool,
    title: str,
    score: Callable[[Any], float] | None = None,
) -> Any:
    """Train one step; every epoch ends with a training state from which a resumed run continues exactly.

    Args:
        method: maps batches to loss terms; on its device.
        dataset: the step's training images.
        config: of the run.
        settings: of the step.
        folder: for the training state and the TensorBoard log.
        normalization: of the images.
        evaluate: called with the TensorBoard log and the iteration, every `evaluate_every` epochs and at the end.
        cost: of the step, kept with every training state.
        resume: continue from the training state in `folder`, if there is one.
        title: of the progress bar.
        score: of what `evaluate` returned; the step then ends with the weights of the highest score after the warm-up.
            None for those of the last epoch.

    Returns:
        What the last evaluation returned; with `score`, that of the epoch whose weights were kept.

    Raises:
        UserError: a gradient is not finite, the training state does not fit, or the model lacks what `settings` ask.
    """
    device = next(method.parameters()).device
    sampler = dataset.sampler(settings.batch, settings.passes)
    loader = make_loader(dataset, settings.batch, config.data.workers, device, sampler, settings.accumulate)
    length = len(loader) // settings.accumulate  # iterations of an epoch
    optimizer, scheduler = make_optimizer(method, settings, length)
    precision = autocast_dtype(config.precision, device)
    autocast = torch.autocast(device.type, precision, enabled=precision is not torch.float32)
    scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
    best = Best(method)
    chosen = {} if score is None else {"best": best}
    state = TrainingState(
        folder, device, method=method, optimizer=optimizer, scheduler=scheduler, scaler=scaler, **chosen
    )
    first = state.restore() if resume else 0
    if first != distributed.from_main(first):
        raise UserError(f"{folder.path}: the processes see training states of different epochs; start them again")
    if not first:
        method.prepare(batches(loader, device, normalization))
    if first >= settings.epochs:  # stopped between the last epoch and the end of the step
        return best.take() if best.epoch else state.evaluation
    computed = prepared(method, config, settings)
    with Log(folder, first * length, title, settings.epochs, settings.batch, settings.accumulate) as log:
        for epoch in range(first, settings.epochs):
            sampler.set_epoch(epoch)
            method.train()
            if settings.freeze_norm:
                freeze_norm(method)
            if distributed.rank():
                torch.manual_seed(seeds.of_process(config.seed, epoch, distributed.rank()))
            parts_of_batches = grouped(log.progress(loader, epoch), settings.accumulate)
            for iteration, parts in enumerate(parts_of_batches, epoch * length):
                optimizer.zero_grad(set_to_none=True)
                moved = batches(parts, device, normalization)
                losses = backward(computed, moved, len(parts), epoch, settings.batch, autocast, scaler)
                if settings.optimizer == "sgd":  # the moments of AdamW begin with the first gradient
                    fill_gradients(method.learning(epoch))
                scaler.unscale_(optimizer)
                norm, values = measured(gradient_norm(method, config.max_grad_norm), losses)
                # a scaler skips a step by itself if only the scaled gradients are too large
                if not math.isfinite(values["total"] if scaler.is_enabled() else norm):
                    raise not_finite(values, norm, epoch, iteration, folder)
                scaler.step(optimizer)
                scaler.update()
                log.iteration(iteration, values, norm, optimizer)
                scheduler.step()
            log.end_of_epoch()
            if epoch + 1 == settings.epochs or (epoch + 1) % config.evaluate_every == 0:
                state.evaluation = evaluate(log.board, (epoch + 1) * length - 1)
                # in the warm-up the model has not learned from image-level labels yet
                if score is not None and epoch >= min(method.warmup, settings.epochs - 1):
                    best.offer(epoch + 1, score(state.evaluation), state.evaluation)
            log.board.flush()  # a killed process loses unwritten entries, and the state must not be ahead of the log
            cost.keep()
            if distributed.is_main():
                state.keep(epoch + 1)
        return best.take() if best.epoch else state.evaluation


def grouped(items: Iterator[T], size: int) -> Iterator[tuple[T, ...]]:
    """Group neighbouring items, `size` at a time; their number must be a multiple of `size`."""
    return zip(*[items] * size, strict=True)


def backward(
    computed: nn.Module,
    parts: Iterable[Batch],
    count: int,
    epoch: int,
    images: int,
    autocast: torch.autocast,
    scaler: torch.amp.GradScaler,
) -> dict[str, Tensor]:
    """Add up the gradients of this process's share of a batch, which comes in `count` parts.

    A loss term is a mean over the images of a part. It is multiplied by the part's share of the global batch and by the
    number of processes, because the gradients are averaged over the processes with the last part.

    Args:
        computed: the method, as :func:`distribute` returns it.
        parts: the parts of this process's share.
        count: number of parts.
        epoch: from 0.
        images: number of images in the global batch.
        autocast: mixed precision of the forward pass.
        scaler: scales the loss in fp16.

    Returns:
        The total and its terms, detached; their mean over the processes is the mean over the global batch.
    """
    losses: dict[str, Tensor] = {}
    for number, batch in enumerate(parts, 1):
        share = len(batch["image"]) * distributed.processes() / images
        with computed.no_sync() if number < count and distributed.processes() > 1 else nullcontext():  # type: ignore[operator]
            with autocast:
                terms = {name: share * term for name, term in computed(batch, epoch).items()}
                total = sum(terms.values())
            scaler.scale(total).backward()
        for name, value in {"total": total, **terms}.items():
            losses[name] = losses.get(name, 0) + value.detach()
    return losses


def fill_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give parameters without a gradient one of zeros, so that weight decay and momentum move them, as published.

    The warm-up leaves decoder and classifiers without one. SGD skips a parameter whose gradient is None.
    """
    for parameter in parameters:
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def measured(norm: Tensor, losses: dict[str, Tensor]) -> tuple[float, dict[str, float]]:
    """Gradient norm and losses as numbers, averaged over the processes, with one synchronisation of the device."""
    numbers = torch.stack([norm, *losses.values()])
    first, *rest = (distributed.total(numbers) / distributed.processes()).tolist()
    return first, dict(zip(losses, rest, strict=True))


def freeze_norm(method: nn.Module) -> None:
    """Let every batch-norm normalise by its running statistics and keep them as they are."""
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def gradient_norm(method: nn.Module, limit: float | None) -> Tensor:
    """Norm of the unscaled gradient over all parameters; the gradient is clipped to `limit` if there is one."""
    return nn.utils.clip_grad_norm_(method.parameters(), math.inf if limit is None else limit)


def not_finite(values: dict[str, float], norm: float, epoch: int, iteration: int, folder: StepFolder) -> UserError:
    """The error for a gradient that is not finite."""
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "total")
    kept = folder.state
    where = f"the state after epoch {epoch} is in {kept}" if kept.exists() else "no epoch was complete yet"
    return UserError(
        f"the gradient is not finite (norm {norm}) in epoch {epoch + 1}, iteration {iteration}: {shown}; "
        f"{where}. Choose a lower learning rate or set max_grad_norm, and check the images"
    )

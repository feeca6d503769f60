"""The training loop: one step of a task, for every method alike."""

from __future__ import annotations

import inspect
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from wilson import checkpoint, distributed
from wilson.config import Config, StepConfig
from wilson.data.dataset import EpochSampler, StepDataset
from wilson.data.transforms import denormalize
from wilson.errors import UserError
from wilson.methods import Batch, Method
from wilson.models.sync_norm import synchronize


def fit(
    method: Method,
    dataset: StepDataset,
    config: Config,
    settings: StepConfig,
    folder: Path,
    normalization: tuple[tuple[float, ...], tuple[float, ...]],
    evaluate: Callable[[Any, int], Any],
    *,
    resume: bool,
    title: str,
) -> Any:
    """Train one step; every epoch ends with a checkpoint from which a resumed run continues exactly.

    Args:
        method: maps batches to loss terms; on its device.
        dataset: the step's training images.
        config: of the run.
        settings: of the step.
        folder: for the training state and the TensorBoard log.
        normalization: mean and standard deviation of the images.
        evaluate: called with the log and the iteration every `evaluate_every` epochs and at the end.
        resume: continue from the training state in `folder`, if there is one.
        title: of the progress bar.

    Returns:
        What the last evaluation returned.

    Raises:
        UserError: a gradient that is not finite.
    """
    from tqdm import tqdm

    device = next(method.parameters()).device
    sampler = dataset.sampler(settings.batch)
    loader = make_loader(dataset, settings.batch, config.data.workers, device, sampler, settings.accumulate)
    optimizer = torch.optim.SGD(
        [
            {"params": list(params), "lr": settings.lr_encoder if name == "encoder" else settings.lr_head, "name": name}
            for name, params in method.parameter_groups().items()
        ],
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )
    length = len(loader) // settings.accumulate
    total, warmup = settings.epochs * length, settings.warmup * length
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 1.0 if t < warmup else max(0.0, 1 - t / total) ** settings.power
    )
    precision = autocast_dtype(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
    state = {"method": method, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    first = restore(folder, state, device) if resume else 0
    if first != distributed.from_main(first):
        raise UserError(f"{folder}: the processes see training states of different epochs; start them again")
    if first >= settings.epochs:  # stopped between the last epoch and the end of the step
        with open_log(folder, total) as board:
            return evaluate(board, total - 1)
    if not first:
        method.prepare(to_batch(loaded, device, normalization) for loaded in loader)
    computed = distribute(method)
    autocast = torch.autocast(device.type, precision, enabled=precision is not torch.float32)

    with open_log(folder, first * length) as board:
        result = None
        for epoch in range(first, settings.epochs):
            sampler.set_epoch(epoch)
            method.train()
            if settings.freeze_norm:
                freeze_norm(method)
            if distributed.rank():  # dropout of its own, the same when resumed
                torch.manual_seed(hash((config.seed, epoch, distributed.rank())))
            start = time.monotonic()
            sums: defaultdict[str, float] = defaultdict(float)
            hidden = None if distributed.is_main() else True
            name = f"{title}, epoch {epoch + 1}/{settings.epochs}"
            bar = tqdm(loader, name, leave=False, disable=hidden, unit="batch")
            for iteration, parts in enumerate(zip(*[iter(bar)] * settings.accumulate, strict=True), epoch * length):
                optimizer.zero_grad(set_to_none=True)
                batches = (to_batch(loaded, device, normalization) for loaded in parts)
                losses = backward(computed, batches, len(parts), epoch, settings.batch, autocast, scaler)
                scaler.unscale_(optimizer)
                # one host synchronisation for all of them
                numbers = torch.stack([gradient_norm(method, config.max_grad_norm), *losses.values()])
                norm, *mean = (distributed.total(numbers) / distributed.processes()).tolist()
                values = dict(zip(losses, mean, strict=True))
                # a scaler skips a step by itself if only the scaled gradients are too large
                if not math.isfinite(values["total"] if scaler.is_enabled() else norm):
                    raise not_finite(values, norm, epoch, iteration, folder)
                scaler.step(optimizer)
                scaler.update()

                for term, value in values.items():
                    sums[term] += value
                done = iteration - epoch * length + 1
                speed = done * settings.batch / (time.monotonic() - start)
                bar.set_postfix_str(" ".join(f"{k} {v:.3f}" for k, v in values.items()) + f", {speed:.0f} images/s")
                for term, value in values.items():
                    board.add_scalar(f"loss/{term}", value, iteration)
                for group in optimizer.param_groups:
                    board.add_scalar(f"lr/{group['name']}", group["lr"], iteration)
                board.add_scalar("gradient_norm", norm, iteration)
                scheduler.step()
            if distributed.is_main():
                means = " ".join(f"{term} {value / length:.4f}" for term, value in sums.items())
                print(f"{name}: {means}, {speed:.0f} images/s", flush=True)
            last = epoch + 1 == settings.epochs
            if last or (epoch + 1) % config.evaluate_every == 0:
                result = evaluate(board, (epoch + 1) * length - 1)
            board.flush()  # a killed process loses what its log has not written; the state must not be ahead of it
            if distributed.is_main():
                keep(folder, state, epoch + 1, device)
        return result


def backward(
    computed: nn.Module,
    batches: Iterable[Batch],
    count: int,
    epoch: int,
    images: int,
    autocast: torch.autocast,
    scaler: torch.amp.GradScaler,
) -> dict[str, torch.Tensor]:
    """Add up the gradients of this process's share of a batch, which comes in `count` parts.

    A term is the mean over the images of a part. Each part weighs as many of the `images` of the global batch as it
    holds, times the processes, over which the gradients are averaged with the last part.

    Returns:
        The total and its terms, whose mean over processes is that over the global batch.
    """
    losses: dict[str, torch.Tensor] = {}
    for number, batch in enumerate(batches, 1):
        share = len(batch["image"]) * distributed.processes() / images
        with computed.no_sync() if number < count and distributed.processes() > 1 else nullcontext():  # type: ignore[operator]
            with autocast:
                terms = {name: share * term for name, term in computed(batch, epoch).items()}
                total = sum(terms.values())
            scaler.scale(total).backward()
        for name, value in {"total": total, **terms}.items():
            losses[name] = losses.get(name, 0) + value.detach()
    return losses


class ShareOfBatches(Sampler[list[Any]]):
    """This process's share of every batch of a sampler's order, in parts; the last incomplete batch is dropped.

    The order and the batches do not depend on the number of processes. Each part holds at least one image.

    Args:
        sampler: the global order.
        batch: images of a batch, at least processes x parts.
        parts: in which a process takes its share, one after the other.
    """

    def __init__(self, sampler: EpochSampler, batch: int, parts: int) -> None:
        self.sampler, self.batch, self.parts = sampler, batch, parts

    def __len__(self) -> int:
        return len(self.sampler) // self.batch * self.parts

    def __iter__(self) -> Iterator[list[Any]]:
        order, processes = list(self.sampler), distributed.processes()
        for start in range(0, len(order) - self.batch + 1, self.batch):
            for part in range(self.parts):
                where = distributed.part(self.batch, self.parts * processes, part * processes + distributed.rank())
                yield order[start : start + self.batch][where]


def make_loader(
    dataset: StepDataset,
    batch: int,
    workers: int,
    device: torch.device,
    sampler: EpochSampler | None = None,
    parts: int = 1,
) -> DataLoader[dict[str, Any]]:
    """This process's share of the sampler's batches, each in parts; without a sampler, of all images, each once."""
    order = (
        {"batch_size": batch, "sampler": distributed.share(len(dataset))}
        if sampler is None
        else {"batch_sampler": ShareOfBatches(sampler, batch, parts)}
    )
    return DataLoader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # samples have numbers of their own; the global ones are for dropout
        **order,
    )


def open_log(folder: Path, purge_step: int) -> Any:
    """The TensorBoard log of a step, from `purge_step` on; of the first process alone."""
    if not distributed.is_main():
        return distributed.Silent()
    from torch.utils.tensorboard import SummaryWriter

    # TensorBoard reads its files in the order of their names, which begin with the second that they were made in
    while any(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
        time.sleep(0.05)
    return SummaryWriter(str(folder), purge_step=purge_step)


def distribute(method: Method) -> nn.Module:
    """The method with batch-norm and gradients over all processes; itself in a process of its own."""
    if distributed.processes() == 1:
        return method
    device, parallel = next(method.parameters()).device, nn.parallel.DistributedDataParallel
    synchronize(method, device)
    # Buffers are the same in all processes anyway. PyTorch renamed the switch.
    names = inspect.signature(parallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    return parallel(
        method,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=not method.pixel_supervised,  # decoder and classifiers wait for the warm-up's end
        **{buffers: False},  # type: ignore[arg-type]
    )


def freeze_norm(method: nn.Module) -> None:
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def to_batch(
    loaded: dict[str, Any], device: torch.device, normalization: tuple[tuple[float, ...], tuple[float, ...]]
) -> Batch:
    """Move a loaded batch to the device, and add the de-normalised image."""
    batch: Batch = {
        "image": loaded["image"].to(device, non_blocking=True, memory_format=torch.channels_last),
        "labels": loaded["labels"].to(device, non_blocking=True),
    }
    batch["rgb"] = denormalize(batch["image"], *normalization)
    if "mask" in loaded:
        batch["mask"] = loaded["mask"].to(device, non_blocking=True)
    if "saliency" in loaded:
        batch["saliency"] = loaded["saliency"].to(device, non_blocking=True)
    return batch


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """float32 stands for no mixed precision."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def gradient_norm(method: nn.Module, limit: float | None) -> torch.Tensor:
    """Norm over all parameters that have a gradient, after unscaling; clipped to `limit` if there is one."""
    return nn.utils.clip_grad_norm_(method.parameters(), math.inf if limit is None else limit)


def not_finite(values: dict[str, float], norm: float, epoch: int, iteration: int, folder: Path) -> UserError:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "total")
    kept = folder / checkpoint.STATE
    where = f"the state after epoch {epoch} is in {kept}" if kept.exists() else "no epoch was complete yet"
    return UserError(
        f"the gradient is not finite (norm {norm}) in epoch {epoch + 1}, iteration {iteration}: {shown}; "
        f"{where}. Choose a lower learning rate or set max_grad_norm, and check the images"
    )


def keep(folder: Path, state: dict[str, Any], epoch: int, device: torch.device) -> None:
    """Write everything that the next epoch depends on."""
    values = {name: part.state_dict() for name, part in state.items()}
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    checkpoint.save_state(
        {"format": checkpoint.FORMAT, "epoch": epoch, "rng": torch.get_rng_state(), "cuda_rng": cuda, **values}, folder
    )


def restore(folder: Path, state: dict[str, Any], device: torch.device) -> int:
    """Take up the state that :func:`keep` wrote; returns the epoch to go on with, 0 if there is no state."""
    values = checkpoint.load_state(folder)
    if values is None:
        return 0
    try:
        for name, part in state.items():
            part.load_state_dict(values[name])
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{folder / checkpoint.STATE} does not fit this configuration ({str(error).splitlines()[0]}); "
            "use --overwrite"
        ) from error
    torch.set_rng_state(values["rng"])
    if device.type == "cuda" and values["cuda_rng"] is not None:
        torch.cuda.set_rng_state(values["cuda_rng"], device)
    return values["epoch"]

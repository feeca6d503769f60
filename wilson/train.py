"""The training loop: one step of a task, for every method alike."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from wilson import checkpoint
from wilson.config import Config, StepConfig
from wilson.data.dataset import EpochSampler, StepDataset
from wilson.data.transforms import denormalize
from wilson.errors import UserError
from wilson.methods import Batch, Method


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
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    device = next(method.parameters()).device
    sampler = EpochSampler(len(dataset), config.seed)
    loader = make_loader(dataset, settings.batch, config.data.workers, device, sampler)
    optimizer = torch.optim.SGD(
        [
            {"params": list(params), "lr": settings.lr_encoder if name == "encoder" else settings.lr_head, "name": name}
            for name, params in method.parameter_groups().items()
        ],
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )
    total, warmup = settings.epochs * len(loader), settings.warmup * len(loader)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 1.0 if t < warmup else max(0.0, 1 - t / total) ** settings.power
    )
    precision = autocast_dtype(config.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
    state = {"method": method, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    first = restore(folder / checkpoint.STATE, state) if resume else 0
    if first >= settings.epochs:  # stopped between the last epoch and the end of the step
        with SummaryWriter(str(folder), purge_step=total) as board:
            return evaluate(board, total - 1)

    with SummaryWriter(str(folder), purge_step=first * len(loader)) as board:
        result = None
        for epoch in range(first, settings.epochs):
            sampler.set_epoch(epoch)
            method.train()
            start = time.monotonic()
            sums: defaultdict[str, float] = defaultdict(float)
            bar = tqdm(loader, f"{title}, epoch {epoch + 1}/{settings.epochs}", leave=False, disable=None, unit="batch")
            for iteration, loaded in enumerate(bar, epoch * len(loader)):
                batch = to_batch(loaded, device, normalization)
                with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
                    terms = method(batch, epoch)
                    loss = sum(terms.values())
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                norm = gradient_norm(method, config.max_grad_norm)
                if not math.isfinite(norm) and not scaler.is_enabled():  # the scaler skips such a step by itself
                    raise not_finite(terms, norm, epoch, iteration, folder)
                scaler.step(optimizer)
                scaler.update()

                # one host synchronisation for all of them
                values = dict(zip(("total", *terms), torch.stack([loss, *terms.values()]).tolist(), strict=True))
                for name, value in values.items():
                    sums[name] += value
                done = iteration - epoch * len(loader) + 1
                speed = done * settings.batch / (time.monotonic() - start)
                bar.set_postfix_str(" ".join(f"{k} {v:.3f}" for k, v in values.items()) + f", {speed:.0f} images/s")
                for name, value in values.items():
                    board.add_scalar(f"loss/{name}", value, iteration)
                for group in optimizer.param_groups:
                    board.add_scalar(f"lr/{group['name']}", group["lr"], iteration)
                board.add_scalar("gradient_norm", norm, iteration)
                scheduler.step()
            mean = " ".join(f"{name} {value / len(loader):.4f}" for name, value in sums.items())
            print(f"{title}, epoch {epoch + 1}/{settings.epochs}: {mean}, {speed:.0f} images/s", flush=True)
            last = epoch + 1 == settings.epochs
            if last or (epoch + 1) % config.evaluate_every == 0:
                result = evaluate(board, (epoch + 1) * len(loader) - 1)
            keep(folder / checkpoint.STATE, state, epoch + 1)
        return result


def make_loader(
    dataset: StepDataset, batch: int, workers: int, device: torch.device, sampler: EpochSampler | None = None
) -> DataLoader[dict[str, Any]]:
    """Batches in the sampler's order, the last incomplete one dropped; without a sampler every image once, in order."""
    return DataLoader(
        dataset,
        batch,
        sampler=sampler,
        num_workers=workers,
        drop_last=sampler is not None,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )


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
    return batch


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """float32 stands for no mixed precision."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def gradient_norm(method: nn.Module, limit: float | None) -> float:
    """Norm over all parameters that have a gradient, after unscaling; clipped to `limit` if there is one."""
    return nn.utils.clip_grad_norm_(method.parameters(), math.inf if limit is None else limit).item()


def not_finite(terms: dict[str, torch.Tensor], norm: float, epoch: int, iteration: int, folder: Path) -> UserError:
    values = ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items())
    kept = folder / checkpoint.STATE
    where = f"the state after epoch {epoch} is in {kept}" if kept.exists() else "no epoch was complete yet"
    return UserError(
        f"the gradient is not finite (norm {norm}) in epoch {epoch + 1}, iteration {iteration}: {values}; "
        f"{where}. Choose a lower learning rate or set max_grad_norm, and check the images"
    )


def keep(path: Path, state: dict[str, Any], epoch: int) -> None:
    """Write everything that the next epoch depends on."""
    values = {name: part.state_dict() for name, part in state.items()}
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    checkpoint.save(
        {"format": checkpoint.FORMAT, "epoch": epoch, "rng": torch.get_rng_state(), "cuda_rng": cuda, **values}, path
    )


def restore(path: Path, state: dict[str, Any]) -> int:
    """Take up the state that :func:`keep` wrote; returns the epoch to go on with, 0 if there is no state."""
    if not path.exists():
        return 0
    values = checkpoint.load(path)
    try:
        for name, part in state.items():
            part.load_state_dict(values[name])
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} does not fit this configuration ({str(error).splitlines()[0]}); use --overwrite"
        ) from error
    torch.set_rng_state(values["rng"])
    if torch.cuda.is_available() and values["cuda_rng"]:
        torch.cuda.set_rng_state_all(values["cuda_rng"])
    return values["epoch"]

"""How a method is computed: over several processes, compiled, with less memory, and in which precision."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from wilson import distributed
from wilson.config import Config, StepConfig
from wilson.errors import UserError
from wilson.methods import Method
from wilson.models import SegmentationModel
from wilson.models.batch_norm import synchronize


def prepared(method: Method, config: Config, settings: StepConfig) -> nn.Module:
    """The method as training calls it; the method itself keeps its parameters and their names, for all other use.

    Args:
        method: on its device.
        config: of the run; may ask to compile the method.
        settings: of the step; may ask to save memory.

    Raises:
        UserError: the encoder cannot save memory.
    """
    if settings.checkpointing:
        recompute(method.model, settings.freeze_norm)
    computed = distribute(method)
    # Evaluation calls the method's own modules, so it does not compile them again for other sizes.
    return torch.compile(computed) if config.compile else computed  # type: ignore[return-value]


def recompute(model: SegmentationModel, frozen_norm: bool) -> None:
    """Let the encoder's blocks compute their activations again in the backward pass instead of keeping them.

    Batch-norm would count each batch twice, so it must be frozen.
    """
    body: Any = getattr(model.encoder, "body", None)
    switch: Callable[[], None] | None = getattr(body, "set_grad_checkpointing", None)
    if switch is None:
        raise UserError("--step.checkpointing: the blocks of this backbone are not known; choose another one of timm's")
    if not frozen_norm and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in body.modules()):
        raise UserError(
            "--step.checkpointing: batch-norm in the backbone would count each batch twice; use --step.freeze-norm, "
            "--step.accumulate, or a backbone without batch-norm, such as vit_small_patch14_dinov2"
        )
    switch()


def distribute(method: Method) -> nn.Module:
    """Let batch-norm and gradients of a method work over all processes; a single process gets the method itself."""
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
        find_unused_parameters=not method.pixel_supervised,  # the warm-up leaves decoder and classifiers out
        **{buffers: False},  # type: ignore[arg-type]
    )


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of mixed precision; float32 means none."""
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]

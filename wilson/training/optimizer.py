"""The optimiser of a step: its groups of parameters, their learning rates, and the schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from wilson.config import StepConfig
from wilson.errors import UserError
from wilson.methods import Method

FUSED = ("cuda",)  # devices on which all parameters are updated by one kernel


def make_optimizer(
    method: Method, settings: StepConfig, length: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """SGD with Nesterov momentum or AdamW, and its schedule: constant in the warm-up, then (1 - t/T)^power.

    Args:
        method: gives the parameters; on its device.
        settings: of the step, as `Config.for_step` gives them.
        length: iterations of an epoch; t and T count iterations from the start of the step.

    Raises:
        UserError: the learning rate is to decay from layer to layer, and the layers of the encoder are not known.
    """
    groups = list(parameter_groups(method, settings))
    nesterov, decay = settings.momentum > 0, settings.weight_decay
    fused = next(method.parameters()).device.type in FUSED
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, weight_decay=decay, fused=fused)
    else:
        optimizer = torch.optim.SGD(
            groups, momentum=settings.momentum, weight_decay=decay, nesterov=nesterov, fused=fused
        )
    total, warmup = settings.epochs * length, (settings.warmup or 0) * length

    def factor(t: int) -> float:
        return 1.0 if t < warmup else max(0.0, 1 - t / total) ** settings.power

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def parameter_groups(method: Method, settings: StepConfig) -> Iterator[dict[str, Any]]:
    """The parameters by group, each with its name and rate; the encoder has a rate of its own, or one for each layer.

    With N layers, layer n = 1 .. N of the encoder learns at lr_encoder * layer_decay^(N - n) (BEiT, Bao et al., ICLR
    2022, Appendix H, where the head is one more layer).
    """
    for name, params in method.parameter_groups().items():
        if name != "encoder":
            yield {"params": list(params), "lr": settings.lr_head, "name": name}
        elif settings.layer_decay == 1:
            yield {"params": list(params), "lr": settings.lr_encoder, "name": name}
        else:
            layers = layers_of(method)
            for number, layer in enumerate(layers, 1):
                rate = settings.lr_encoder * settings.layer_decay ** (len(layers) - number)
                yield {"params": layer, "lr": rate, "name": f"{name}.{number}"}


def layers_of(method: Method) -> list[list[torch.nn.Parameter]]:
    """The parameters of each layer of the encoder, from the first to the last."""
    numbered = getattr(method.model.encoder, "layers", None)
    layers = numbered() if callable(numbered) else None
    if layers is None:
        raise UserError(
            "--step.layer-decay: timm does not number the layers of this backbone; choose one of timm's, such as "
            "vit_small_patch14_dinov2, or a layer decay of 1"
        )
    return layers

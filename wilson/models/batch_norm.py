"""Batch-norm over the global batch of all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _AllReduce(torch.autograd.Function):
    """Sum over all processes. Each process uses the sum, so the gradient is summed over all of them, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class GlobalBatchNorm(_BatchNorm):
    """Batch-norm over the batches of all processes, on any device: (B, C, H, W) -> (B, C, H, W).

    With N the number of pixels of all processes: mean = sum x / N and var = sum (x - mean)^2 / N. Both sums run over
    all processes and are differentiable. running_var follows N / (N - 1) var. The state dict is that of
    `nn.BatchNorm2d`. A layer that replaces one of timm's keeps its activation and dropout.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise ValueError(f"GlobalBatchNorm: expected (B, C, H, W), got shape {tuple(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        y = self._normalized(wide).to(x.dtype) if self.training else super().forward(x)
        for name in ("drop", "act"):
            y = getattr(self, name, nn.Identity())(y)
        return y

    def _normalized(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        each, across = (1, -1, 1, 1), (0, 2, 3)
        pixels = x.new_tensor([x.numel() / x.shape[1]])
        sums = _AllReduce.apply(torch.cat([x.sum(across), pixels]))
        pixels, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        centred = x - mean.view(each)
        var = _AllReduce.apply(centred.square().sum(across)) / pixels
        with torch.no_grad():
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr,arg-type]
            self.running_var.lerp_(var * pixels / (pixels - 1), self.momentum)  # type: ignore[union-attr,arg-type]
        scale = self.weight * (var + self.eps).rsqrt()
        return centred * scale.view(each) + self.bias.view(each)


def synchronize(model: nn.Module, device: torch.device) -> nn.Module:
    """Let every batch-norm of a model work over all processes; parameters, buffers and their names stay.

    Args:
        model: with `nn.BatchNorm2d` or timm's activated batch-norm; changed in place.
        device: that the model runs on. On a GPU the layers become PyTorch's SyncBatchNorm; on the CPU, for which
            PyTorch has none, they become `GlobalBatchNorm`.

    Returns:
        The model.
    """
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm):
            norm = GlobalBatchNorm(child.num_features, child.eps, child.momentum)
            norm.__dict__.update(child.__dict__)  # the same parameters and buffers, and timm's activation
            setattr(model, name, norm)
        else:
            synchronize(child, device)
    return model

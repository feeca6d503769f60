"""Batch-norm over the global batch of several processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _AllReduce(torch.autograd.Function):
    """The sum over all processes. What each does with it counts in its gradient, so that is summed, too."""

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
    """Batch-norm whose statistics are those of all processes' batches, on any device; state dict of `nn.BatchNorm2d`.

    With N the number of pixels of all processes: mean = sum x / N and var = sum (x - mean)^2 / N, each sum over all
    processes and differentiable; running_var takes N / (N - 1) var. (B, C, H, W) -> (B, C, H, W). It keeps the
    activation and dropout of a timm layer that it takes the place of.
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
    """The model with every batch-norm over all processes; parameters, buffers and their names stay.

    Args:
        model: with `nn.BatchNorm2d` or timm's activated batch-norm.
        device: that it runs on. GPUs get PyTorch's SyncBatchNorm, CPUs, where PyTorch has none, `GlobalBatchNorm`.
    """
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm):
            norm = GlobalBatchNorm(child.num_features, child.eps, child.momentum)
            norm.__dict__.update(child.__dict__)  # the very same parameters and buffers; timm's activation
            setattr(model, name, norm)
        else:
            synchronize(child, device)
    return model

"""mmsegmentation's decode heads: the real ones, and a stand-in of the same public signatures.

mmsegmentation asks for mmcv, which has no wheels for recent Python and PyTorch. Its light edition, mmcv-lite, has all
that decode heads need, but mmsegmentation imports the names of compiled ops that it lacks: `real` gives them names.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MODULE = "mmseg.models.decode_heads.decode_head"


def put_in(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `import mmseg` find the library, "mmsegmentation", or the "stand-in"."""
    if name == "stand-in":
        for module, members in stand_in().items():
            monkeypatch.setitem(sys.modules, module, members)
        return
    for package in ("mmseg", "mmengine", "mmcv"):
        pytest.importorskip(package, reason="needs mmsegmentation, as .ci/run installs it")
    if importlib.util.find_spec("mmcv._ext") is None:
        monkeypatch.setitem(sys.modules, "mmcv._ext", CompiledOps("mmcv._ext"))
    importlib.import_module(MODULE)


class CompiledOps(ModuleType):
    """Has every op, none of which is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def stand_in() -> dict[str, ModuleType]:
    losses, head = ModuleType("mmseg.models.losses"), ModuleType(MODULE)
    losses.__dict__.update(CrossEntropyLoss=CrossEntropyLoss, DiceLoss=DiceLoss)
    head.__dict__["BaseDecodeHead"] = type("BaseDecodeHead", (Head,), {"loss_by_feat": loss_by_feat})
    packages = ("mmseg", "mmseg.models", "mmseg.models.decode_heads")
    return {losses.__name__: losses, MODULE: head, **{name: ModuleType(name) for name in packages}}


class CrossEntropyLoss(nn.Module):
    """The losses of mmsegmentation: one number per pixel, divided by all pixels or by those that count."""

    def __init__(
        self,
        use_sigmoid: bool = False,
        use_mask: bool = False,
        reduction: str = "mean",
        class_weight: list[float] | None = None,
        loss_weight: float = 1.0,
        loss_name: str = "loss_ce",
        avg_non_ignore: bool = False,
    ) -> None:
        super().__init__()
        self.use_sigmoid, self.use_mask, self.reduction = use_sigmoid, use_mask, reduction
        self.class_weight, self.loss_weight, self.avg_non_ignore = class_weight, loss_weight, avg_non_ignore
        self.loss_name = loss_name

    def forward(
        self, cls_score: Tensor, label: Tensor, weight: Tensor | None = None, ignore_index: int = -100
    ) -> Tensor:
        counted = label != ignore_index
        if self.use_sigmoid:
            classes = max(cls_score.shape[1], 2)
            target = F.one_hot(label * counted, classes).movedim(3, 1)[:, -cls_score.shape[1] :].to(cls_score.dtype)
            loss = F.binary_cross_entropy_with_logits(cls_score, target, reduction="none").mean(1) * counted
        else:
            of_classes = None if self.class_weight is None else cls_score.new_tensor(self.class_weight)
            loss = F.cross_entropy(cls_score, label, of_classes, ignore_index=ignore_index, reduction="none")
        loss = self.loss_weight * (loss if weight is None else loss * weight)
        if self.reduction == "sum":
            return loss.sum()
        return loss.sum() / counted.sum() if self.avg_non_ignore else loss.mean()


class DiceLoss(CrossEntropyLoss):
    def __init__(self, loss_weight: float = 1.0, loss_name: str = "loss_dice") -> None:
        super().__init__(loss_weight=loss_weight, loss_name=loss_name)


class Sampler:
    def sample(self, seg_logit: Tensor, seg_label: Tensor) -> Tensor:
        return (seg_logit.detach().softmax(1).amax(1) < 0.7).to(seg_logit.dtype)


class Head(nn.Module):
    """What BaseDecodeHead builds from its configuration, as far as its loss needs it."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        num_classes: int,
        out_channels: int | None = None,
        dropout_ratio: float = 0.1,
        loss_decode: Any = None,
        ignore_index: int = 255,
        sampler: dict | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.ignore_index, self.align_corners = ignore_index, align_corners
        self.sampler = Sampler() if sampler else None
        self.conv_seg = nn.Conv2d(channels, out_channels or num_classes, 1)
        configs = loss_decode if isinstance(loss_decode, list) else [loss_decode or {"type": "CrossEntropyLoss"}]
        losses = [globals()[c["type"]](**{k: v for k, v in c.items() if k != "type"}) for c in configs]
        self.loss_decode = nn.ModuleList(losses) if isinstance(loss_decode, list) else losses[0]

    def _stack_batch_gt(self, batch_data_samples: list) -> Tensor:
        return torch.stack([sample.gt_sem_seg.data for sample in batch_data_samples])


def loss_by_feat(self: Any, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
    label = self._stack_batch_gt(batch_data_samples)
    up = F.interpolate(seg_logits, label.shape[2:], mode="bilinear", align_corners=self.align_corners)
    weight = self.sampler.sample(up, label) if self.sampler else None
    label = label.squeeze(1)
    losses = self.loss_decode if isinstance(self.loss_decode, nn.ModuleList) else [self.loss_decode]
    found: dict[str, Tensor] = {}
    for loss in losses:
        value = loss(up, label, weight=weight, ignore_index=self.ignore_index)
        name = str(loss.loss_name)
        found[name] = found[name] + value if name in found else value
    right = (up.argmax(1) == label)[label != self.ignore_index]
    found["acc_seg"] = 100 * right.float().mean().reshape(1)
    return found


def samples_of(mask: Tensor) -> list:
    """A batch of masks `(B, H, W)` as decode heads take it."""
    return [SimpleNamespace(gt_sem_seg=SimpleNamespace(data=one[None])) for one in mask]

"""Translate the names and scales of the published files to the modules of this project."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wilson.errors import UserError
from wilson.models import NormAct, Segmenter
from wilson.models.backbone import Backbone, TimmBackbone

from .published import PublishedFile, describe

SCALE_EPS = 1e-5  # in-place ABN scales by |weight| + this

Rename = Callable[[str], str]  # from a module's name here to its name in the files


def backbone_names(backbone: Backbone) -> Rename:
    """How the files name the modules of a backbone."""
    return _resnet_name if isinstance(backbone, TimmBackbone) else str


def _resnet_name(name: str) -> str:
    if name in ("conv1", "bn1"):
        return f"mod1.{name}"
    stage, block, inner = name.removeprefix("layer").split(".", 2)
    inner = {"downsample.0": "proj_conv", "downsample.1": "proj_bn"}.get(inner, f"convs.{inner}")
    return f"mod{int(stage) + 1}.block{int(block) + 1}.{inner}"


def segmenter_names(model: Segmenter) -> Rename:
    """How the files name the modules of a segmentation model."""
    inside = "backbone.body." if isinstance(model.backbone, TimmBackbone) else "backbone."
    of_backbone = backbone_names(model.backbone)

    def rename(name: str) -> str:
        if name.startswith(inside):
            return f"body.{of_backbone(name.removeprefix(inside))}"
        return re.sub(r"^classifiers\.", "cls.", name)

    return rename


def translate(source: PublishedFile, model: nn.Module, rename: Rename, title: str) -> dict[str, Tensor]:
    """Translate the tensors of a file to the model's names and float32, with the scales of norm layers converted.

    Args:
        source: the file.
        model: the file must hold all its parameters and running statistics, and nothing else.
        rename: turns the names of its modules into those of the file.
        title: name of the model, for the error.

    Raises:
        UserError: a tensor is missing, unexpected or misshapen; the text names all such tensors.
    """
    state, modules = model.state_dict(), dict(model.named_modules())
    keys, scales = {}, set()
    for name in state:
        owner, _, leaf = name.rpartition(".")
        if leaf == "num_batches_tracked":
            continue
        outer = owner.rpartition(".")[0]
        # in the files, a norm and its activation are one module
        keys[name] = f"{rename(outer if isinstance(modules.get(outer), NormAct) else owner)}.{leaf}"
        if leaf == "weight" and isinstance(modules[owner], nn.BatchNorm2d):
            scales.add(name)
    _refuse_misfits(source, {key: state[name] for name, key in keys.items()}, title)
    weights = {}
    for name, key in keys.items():
        value = source.tensors[key].to(torch.float32)
        weights[name] = (value.abs() + SCALE_EPS if name in scales else value).contiguous()
    return weights


def _refuse_misfits(source: PublishedFile, wanted: Mapping[str, Tensor], title: str) -> None:
    found = source.tensors
    missing = [f"missing     {key}" for key in wanted if key not in found]
    unexpected = [f"unexpected  {key}" for key in found if key not in wanted]
    misshapen = [
        f"misshapen   {key}: {describe(found[key])}, expected {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in found and not _fits(found[key], value)
    ]
    if not (missing or unexpected or misshapen):
        return
    hint = "check that this is the network it was trained with"
    if any(key.endswith("num_batches_tracked") for key in found):
        hint = "num_batches_tracked belongs to plain batch-norm, but this layout has in-place ABN"
    summary = f"{len(missing)} tensors are missing, {len(unexpected)} unexpected, {len(misshapen)} misshapen"
    refusal = f"weights {source.path} do not fit {title}: {summary}; {hint}; nothing was written"
    raise UserError("\n".join([refusal, *missing, *unexpected, *misshapen]))


def _fits(value: Any, wanted: Tensor) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.shape == wanted.shape

"""Published weights into this project's layout; what does not fit exactly is refused by name.

Two layouts, both of networks with in-place ABN, whose norm layers scale by |weight| + 1e-5 and are followed by leaky
ReLU. ImageNet checkpoints (`state_dict`: `mod1.conv1.weight`, ...) become a file for `--model.weights`. Step
checkpoints of the published WILSON and MiB code (`model_state`: `body.*`, `head.*`, `cls.N.*`) become the checkpoint of
a step.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from wilson import checkpoint
from wilson.config import Config, DataConfig, ModelConfig
from wilson.data.names import COCO_CLASSES
from wilson.data.protocols import COCO_TO_VOC, Task
from wilson.data.voc import VOC_CLASSES, read_classes
from wilson.errors import UserError
from wilson.models import build_backbone
from wilson.models.backbone import ACTIVATION, WIDE, body, read_weights

from .layouts import backbone_names, segmenter_names, translate
from .source import Source

PUBLISHED = {"resnet101": (512, 16), WIDE: (448, 8)}  # training crop and stride: VOC, COCO-to-VOC

__all__ = ["Source", "checksum", "import_weights", "read"]


def import_weights(
    file: Path,
    out: Path,
    backbone: str,
    *,
    task: str | None = None,
    root: str | None = None,
    crop: int | None = None,
    stride: int | None = None,
) -> str:
    """Translate a file of published weights, and print what became of it.

    Args:
        file: in one of the two layouts.
        out: a .safetensors file for ImageNet weights, a .pt file for a step checkpoint.
        backbone: resnet101 or wide_resnet38_a2.
        task: that a step checkpoint was trained on.
        root: data set whose classes.txt names the classes of a step checkpoint; None for VOC's classes.
        crop: side of its training crops; None for the published one.
        stride: of its backbone; None for the published one.

    Returns:
        The checksum.

    Raises:
        UserError: the file does not fit, or the arguments do not suit it; nothing is written.
    """
    source = Source.read(file)
    kind, suffix = ("a step checkpoint", ".pt") if source.is_step else ("weights of a backbone", ".safetensors")
    if out.suffix != suffix:
        raise UserError(f"weights {file} are {kind} and become a {suffix} file, not {out.name}; choose another --out")
    if out.exists():
        raise UserError(f"{out} is there already; remove it, or choose another --out")
    published_crop, published_stride = PUBLISHED[backbone]
    network = ModelConfig(backbone, "none", stride or published_stride, activation="leaky_relu")
    if not source.is_step:
        return _import_backbone(source, out, network)
    if task is None:
        raise UserError(
            f"weights {file} are a step checkpoint; name the task that it was trained on, as in --task 15-5"
        )
    if root is not None and not Path(root).is_dir():
        raise UserError(f"data set {root}: no such folder; give the one whose classes.txt names the classes")
    data = DataConfig(crop=crop or published_crop)
    if root is not None:
        data = replace(data, root=root)
    named = COCO_CLASSES if task == COCO_TO_VOC else VOC_CLASSES
    classes = named if root is None else read_classes(Path(root))
    return _import_step(source, out, Config(task=task, data=data, model=network), Task.parse(task, classes))


def _import_backbone(source: Source, out: Path, network: ModelConfig) -> str:
    backbone = build_backbone(network.backbone, network.stride, activation=network.activation)
    weights = translate(source, body(backbone), backbone_names(backbone), network.backbone)
    _write(weights, {"backbone": network.backbone, ACTIVATION: network.activation}, out)
    return _report(source, weights, out, f"wilson train --model.weights {out} {_options(network)}")


def _import_step(source: Source, out: Path, config: Config, task: Task) -> str:
    steps = [int(match[1]) for key in source.tensors if (match := re.match(r"cls\.(\d+)\.", key))]
    step = max(steps, default=0)
    if step >= len(task.steps):
        raise UserError(
            f"weights {source.path} have classifiers of {step + 1} steps, task {task.name} has {len(task.steps)}; "
            "name the task that they were trained on"
        )
    model = checkpoint.new_model(config, task, step, weights="none")
    weights = translate(source, model, segmenter_names(model), f"{config.model.backbone} with task {task.name}")
    model.load_state_dict(weights, strict=False)  # norm layers of the files count no batches
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_model(model, config, task, step, [], out)
    more = step + 1 < len(task.steps)
    options = f"--task {task.name} --data.crop {config.data.crop} {_options(config.model)}"
    train = f"wilson train --start {out} --step {step + 1} {options}"
    return _report(source, weights, out, train if more else f"wilson evaluate {out}")


def _options(network: ModelConfig) -> str:
    return (
        f"--model.backbone {network.backbone} --model.stride {network.stride} --model.activation {network.activation}"
    )


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of the checkpoint of a step.

    Raises:
        UserError: the file is neither.
    """
    return read_weights(path)[0] if path.suffix == ".safetensors" else checkpoint.Checkpoint(path).weights


def checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, by name; the batch counts of norm layers left out."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if name.endswith("num_batches_tracked"):
            continue
        value = weights[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _write(weights: dict[str, Tensor], metadata: dict[str, str], out: Path) -> None:
    from safetensors.torch import save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")  # renamed when whole
    try:
        save_file(weights, temporary, metadata=metadata)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _report(source: Source, weights: Mapping[str, Tensor], out: Path, next_command: str) -> str:
    left_out = f", left out: {', '.join(source.left_out)}" if source.left_out else ""
    print(f"{out}: {len(weights)} tensors{left_out}")
    digest = checksum(weights)
    print(f"sha256 {digest}")
    print(next_command, flush=True)
    return digest

"""Translate a file of published weights, and print the result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from wilson import checkpoint
from wilson.config import Config, DataConfig, ModelConfig
from wilson.data.names import COCO_CLASSES, VOC_CLASSES
from wilson.data.sources.voc import read_classes
from wilson.data.tasks import COCO_TO_VOC, Task
from wilson.errors import UserError
from wilson.models import build_backbone, new_model
from wilson.models.backbone import WIDE, body
from wilson.models.weight_files import ACTIVATION, checksum, read_weights, write_weights

from .layouts import backbone_names, segmenter_names, translate
from .published import PublishedFile

PUBLISHED: dict[str, tuple[int, int | None, int]] = {  # training crop, tested crop (None for the same), stride
    "resnet101": (512, None, 16),  # VOC
    WIDE: (448, 512, 8),  # COCO-to-VOC
}


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
    """Translate a file of published weights, and print its checksum and the command that uses it.

    Args:
        file: in one of the two layouts.
        out: a .safetensors file for ImageNet weights, a .pt file for a step checkpoint.
        backbone: resnet101 or wide_resnet38_a2.
        task: of a step checkpoint: the task that it was trained on.
        root: of a step checkpoint: the data set with the classes.txt that names the classes. None means the classes of
            VOC, or those of COCO if the task is coco-to-voc.
        crop: of a step checkpoint: side of the training crops in pixels, and of the evaluated ones; None for the
            published ones.
        stride: of the backbone; None for the published one.

    Returns:
        The checksum.

    Raises:
        UserError: the file does not fit, or an argument does not suit it; nothing is written then.
    """
    source = PublishedFile.read(file)
    kind, suffix = ("a step checkpoint", ".pt") if source.is_step else ("weights of a backbone", ".safetensors")
    if out.suffix != suffix:
        raise UserError(f"weights {file} are {kind} and become a {suffix} file, not {out.name}; choose another --out")
    if out.exists():
        raise UserError(f"{out} is there already; remove it, or choose another --out")
    published_crop, published_test_crop, published_stride = PUBLISHED[backbone]
    network = ModelConfig(backbone, "none", stride or published_stride, activation="leaky_relu")
    if not source.is_step:
        return _import_backbone(source, out, network)
    if task is None:
        raise UserError(
            f"weights {file} are a step checkpoint; name the task that it was trained on, as in --task 15-5"
        )
    if root is not None and not Path(root).is_dir():
        raise UserError(f"data set {root}: no such folder; give the one whose classes.txt names the classes")
    data = DataConfig(crop=crop) if crop else DataConfig(crop=published_crop, test_crop=published_test_crop)
    if root is not None:
        data = replace(data, root=root)
    named = COCO_CLASSES if task == COCO_TO_VOC else VOC_CLASSES
    classes = named if root is None else read_classes(Path(root))
    return _import_step(source, out, Config(task=task, data=data, model=network), Task.parse(task, classes))


def _import_backbone(source: PublishedFile, out: Path, network: ModelConfig) -> str:
    backbone = build_backbone(network.backbone, network.stride, activation=network.activation)
    weights = translate(source, body(backbone), backbone_names(backbone), network.backbone)
    write_weights(weights, {"backbone": network.backbone, ACTIVATION: network.activation}, out)
    return _report(source, weights, out, f"wilson train --model.weights {out} {_options(network)}")


def _import_step(source: PublishedFile, out: Path, config: Config, task: Task) -> str:
    steps = [int(match[1]) for key in source.tensors if (match := re.match(r"cls\.(\d+)\.", key))]
    step = max(steps, default=0)
    if step >= len(task.steps):
        raise UserError(
            f"weights {source.path} have classifiers of {step + 1} steps, task {task.name} has {len(task.steps)}; "
            "name the task that they were trained on"
        )
    model = new_model(config.model, task.class_counts(step), config.data.crop, weights="none")
    weights = translate(source, model, segmenter_names(model), f"{config.model.backbone} with task {task.name}")
    model.load_state_dict(weights, strict=False)  # norm layers of the files count no batches
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save_model(model, config, task, step, [], out)
    more = step + 1 < len(task.steps)
    tested = f" --data.test-crop {config.data.test_crop}" if config.data.test_crop else ""
    options = f"--task {task.name} --data.crop {config.data.crop}{tested} {_options(config.model)}"
    train = f"wilson train --start {out} --step {step + 1} {options}"
    return _report(source, weights, out, train if more else f"wilson evaluate {out}")


def _options(network: ModelConfig) -> str:
    return (
        f"--model.backbone {network.backbone} --model.stride {network.stride} --model.activation {network.activation}"
    )


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file or of the checkpoint of a step.

    Raises:
        UserError: the file is neither.
    """
    return read_weights(path)[0] if path.suffix == ".safetensors" else checkpoint.Checkpoint(path).weights


def _report(source: PublishedFile, weights: Mapping[str, Tensor], out: Path, next_command: str) -> str:
    left_out = f", left out: {', '.join(source.left_out)}" if source.left_out else ""
    print(f"{out}: {len(weights)} tensors{left_out}")
    digest = checksum(weights)
    print(f"sha256 {digest}")
    print(next_command, flush=True)
    return digest

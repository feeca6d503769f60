"""The command weights import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class WeightsImport:
    """Translate published weights (in-place ABN) to the project's layout; misfits are refused by name."""

    file: Positional[Path]
    """ImageNet checkpoint, or step checkpoint of the published WILSON or MiB code."""
    out: Path
    """File to write: .safetensors for --model.weights, or .pt, the checkpoint of a step."""
    backbone: Literal["resnet101", "wide_resnet38_a2"] = "resnet101"
    """Network of the weights."""
    task: str | None = None
    """Task of a step checkpoint, as in 15-5."""
    root: str | None = None
    """Data set of a step checkpoint; its classes.txt names the classes. By default the classes are VOC's, or COCO's for
    the task coco-to-voc."""
    crop: int | None = None
    """Training crop of a step checkpoint; by default 512 (resnet101) or 448 (wide_resnet38_a2)."""
    stride: int | None = None
    """Stride of the backbone; by default 16 (resnet101) or 8 (wide_resnet38_a2)."""

    def __call__(self) -> int:
        from wilson.weights.importing import import_weights

        import_weights(
            self.file, self.out, self.backbone, task=self.task, root=self.root, crop=self.crop, stride=self.stride
        )
        return 0

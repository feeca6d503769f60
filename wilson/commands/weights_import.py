"""The command weights import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class WeightsImport:
    """Turn published weights (in-place ABN) into the project's layout; what does not fit is refused by name."""

    file: Positional[Path]
    """ImageNet checkpoint, or step checkpoint of the published WILSON or MiB code."""
    out: Path
    """File to write: .safetensors for --model.weights, or .pt, the checkpoint of a step."""
    backbone: Literal["resnet101", "wide_resnet38_a2"] = "resnet101"
    """Network of the weights."""
    task: str | None = None
    """Task of a step checkpoint, as in 15-5."""
    root: str | None = None
    """Data set of a step checkpoint, whose classes.txt names the classes; VOC's classes without it."""
    crop: int | None = None
    """Training crop of a step checkpoint; 512 (resnet101) or 448 (wide_resnet38_a2) without it."""
    stride: int | None = None
    """Stride of a step checkpoint; 16 (resnet101) or 8 (wide_resnet38_a2) without it."""

    def __call__(self) -> int:
        from wilson.weights.importing import import_weights

        import_weights(
            self.file, self.out, self.backbone, task=self.task, root=self.root, crop=self.crop, stride=self.stride
        )
        return 0

"""The command export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Export:
    """Write the segmentation model as one file, by torch.export or as ONNX, and compare it with the original.

    The file maps normalised images (B, 3, H, W) with sides of 32 pixels or more (33 for transformers with stages or
    patches of 32) to logits (B, C, h, w) at feature resolution. Its metadata hold classes, mask ids, mean, standard
    deviation and crop, as JSON under the key wilson.
    """

    checkpoint: Positional[Path]
    """checkpoint.pt of a step, or the folder of a run, of wilson save or of wilson add."""
    out: Path
    """File to write: .pt2 (torch.export) or .onnx."""
    builder: str | None = None
    """FILE.py:FUNCTION that returns the architecture, for a model that was built by one; it is imported and called."""

    def __call__(self) -> int:
        from wilson.inference.export import export

        export(self.checkpoint, self.out, self.builder)
        return 0

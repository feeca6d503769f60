"""The command save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Save:
    """Write a trained model as a folder: config.json, model.safetensors and a model card, for yourself or a hub."""

    checkpoint: Positional[Path]
    """checkpoint.pt of a step, or the folder of a run or of wilson add."""
    out: Path
    """Folder to write; refused if it is not empty."""

    def __call__(self) -> int:
        from wilson.hub import save
        from wilson.printing import printable

        save(self.checkpoint, self.out)
        print(printable(self.out))
        return 0

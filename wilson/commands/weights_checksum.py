"""The command weights checksum."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class WeightsChecksum:
    """Print the checksum of a file's tensors, as weights import does; equal weights have equal checksums."""

    file: Positional[Path]
    """A .safetensors file, or the checkpoint of a step."""

    def __call__(self) -> int:
        from wilson.models.weight_files import checksum
        from wilson.weights.importing import read

        print(f"sha256 {checksum(read(self.file))}")
        return 0

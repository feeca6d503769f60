"""The command prior clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .options import Images


@dataclass(frozen=True)
class PriorClip:
    """Make maps with an image-text model (CLIP), read at every position."""

    where: Images
    weights: Path
    """Weights of the model, a local .safetensors or .pt file."""
    model: str = "ViT-B-16"
    """An open_clip model with a vision transformer."""
    size: int | None = None
    """Short side that the images are resized to, in pixels; None for that of the model."""
    background: str | None = None
    """Words with commas that stand for everything else; None for common ones, such as sky, grass and wall."""

    def __call__(self) -> int:
        from wilson.distributed import choose_device
        from wilson.priors.clip import BACKGROUND, Clip
        from wilson.priors.maps import chosen_classes, fill, open_images

        where = self.where
        source = open_images(where.root, where.split, where.labels)
        classes = chosen_classes(source, where.classes)
        words = BACKGROUND if self.background is None else [word.strip() for word in self.background.split(",")]
        look = Clip(self.model, self.weights, classes, words, self.size, choose_device(where.device))
        made = f"clip {self.model} {self.weights.name} {look.size} against {', '.join(words)}"
        fill(where.out, source, classes, made, look)
        print(where.out)
        return 0

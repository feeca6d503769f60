"""The command prior head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .options import Images


@dataclass(frozen=True)
class PriorHead:
    """Make maps with a frozen ImageNet classifier, its head applied at every position."""

    where: Images
    weights: Path
    """Weights of the model with their head of 1000 outputs, a local .safetensors or .pth file."""
    model: str = "tf_efficientnet_lite0"
    """A convolutional timm model."""
    size: int = 224
    """Short side that the images are resized to, in pixels (at least 224)."""
    kind: Literal["odds", "min-max"] = "odds"
    """odds: of the class against all others, comparable between images; min-max: its highest logit, scaled to 0..1
    within the image."""
    hyponyms: Path | None = None
    """File of lines NAME: ImageNet classes (numbers, ranges as in 151-268, names), for classes that are not VOC's."""

    def __call__(self) -> int:
        from wilson.distributed import choose_device
        from wilson.errors import UserError
        from wilson.priors.head import Head
        from wilson.priors.hyponyms import hyponyms
        from wilson.priors.maps import chosen_classes, fill, open_images

        where = self.where
        source = open_images(where.root, where.split, where.labels)
        wanted = chosen_classes(source, where.classes)
        members = hyponyms(wanted, self.hyponyms)
        without = [name for name in wanted if name not in members]
        if without and (where.classes is not None or not members):
            raise UserError(
                f"no ImageNet class is known for {', '.join(without[:6])}; name some in a file (--hyponyms)"
            )
        if without:
            print(f"no maps of {', '.join(without)}: no ImageNet class is known for them (--hyponyms)", flush=True)
        look = Head(self.model, self.weights, list(members.values()), self.kind, self.size, choose_device(where.device))
        fill(where.out, source, list(members), f"head {self.model} {self.weights.name} {self.size} {self.kind}", look)
        print(where.out)
        return 0

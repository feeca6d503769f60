"""The command add."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from wilson.errors import UserError


@dataclass(frozen=True)
class Add:
    """Add classes to a trained model of any library, from photographs that show them: zebra=photos/zebra."""

    new: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME=FOLDER [NAME=FOLDER ...]")]
    """The new classes, each as NAME=FOLDER with photographs that show it: at least 2, better 20 and more."""
    to: str
    """The model: a checkpoint or run of wilson, a folder that this command wrote, torchvision:NAME,
    smp:ARCHITECTURE?encoder_name=NAME, a folder of transformers, or FILE.py:FUNCTION, which is imported and called."""
    weights: Path | None = None
    """The model's weights, a state dict (.pt, .pth, .safetensors); by default those that come with it: for
    FILE.py:FUNCTION what the function loads itself."""
    builder: str | None = None
    """FILE.py:FUNCTION that returns the architecture, if a folder that this command wrote needs it."""
    without: Path | None = None
    """Folder of photographs that show none of the new classes: any will do. A single class needs it. Photographs of the
    classes' own folders, if these lie in it, are left out."""
    out: Path | None = None
    """Folder of the results; runs/TIME-add by default. A folder that is not empty is refused."""
    classes: tuple[str, ...] = ()
    """Names of the model's outputs in their order, if it does not know them itself."""
    background: str = "0"
    """Number or name of the output that stands for the background."""
    output: Literal["softmax", "sigmoid"] = "softmax"
    """What the model was trained with: softmax (cross-entropy), or sigmoid (binary cross-entropy)."""
    classifier: str | None = None
    """Name of the layer that computes the scores, if it is not found."""
    features: str | None = None
    """Name of the layer whose output finds the new classes, or 'classifier input', if another is wanted."""
    mean: tuple[float, float, float] | None = None
    """Mean of the image channels, RGB in 0..1; by default ImageNet's, or that of the transformers folder."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of the image channels."""
    validation: Path | None = None
    """Data set with masks in the layout of VOC or COCO, to measure the IoU before and after on its list val
    (COCO: val2017). Its classes are found by name, and its images are left out of the photographs."""
    crop: int | None = None
    """Side of the training crops in pixels; by default chosen by the photographs and the model."""
    epochs: int | None = None
    """Passes over the photographs; by default so many that the step has about 1200 iterations, between 8 and 300. Fewer
    are quicker, and teach less."""
    batch: int | None = None
    """Images per iteration; by default 16, or fewer for few photographs. With --without 3 or more."""
    seed: int = 0
    """Seed of the new weights, of the order and of what is held out."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = 2
    """Processes that load images; 0 loads in the main process."""
    dry_run: bool = False
    """Print what would be done, and why; write nothing."""
    resume: bool = False
    """Continue the run in the folder where it stopped, with the same photographs."""
    overwrite: bool = False
    """Remove the run in the folder first."""

    def __call__(self) -> int:
        from wilson.adding import add_classes
        from wilson.runs.folder import timed_folder

        if not self.new:
            swallowed = next((text for text in self.classes if "=" in text), None)
            why = f"; {swallowed} was taken for a name of --classes, so put it first" if swallowed else ""
            raise UserError(f"no new class was named; give NAME=FOLDER, such as zebra=photos/zebra{why}")
        new = dict(_pair(text) for text in self.new)
        if len(new) < len(self.new):
            raise UserError("a class was named twice; give each class once, as NAME=FOLDER")
        add_classes(
            self.to,
            new,
            without=self.without,
            out=self.out or timed_folder("add"),
            weights=self.weights,
            builder=self.builder,
            validation=self.validation,
            names=self.classes or None,
            crop=self.crop,
            epochs=self.epochs,
            batch=self.batch,
            seed=self.seed,
            device=self.device,
            workers=self.workers,
            resume=self.resume,
            overwrite=self.overwrite,
            dry_run=self.dry_run,
            **self._adapting(),
        )
        return 0

    def _adapting(self) -> dict[str, object]:
        background = int(self.background) if self.background.isdecimal() else self.background
        given = {"classifier": self.classifier, "features": self.features, "mean": self.mean, "std": self.std}
        changed = {"background": background, "output": self.output}
        usual = {"background": 0, "output": "softmax"}
        return {
            **{key: value for key, value in given.items() if value is not None},
            **{key: value for key, value in changed.items() if value != usual[key]},
        }


def _pair(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise UserError(f"'{text}': expected NAME=FOLDER, such as zebra=photos/zebra")
    return name, folder

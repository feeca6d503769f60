"""The commands, one dataclass each: fields are options; calling it does the work and returns the exit status."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import Positional, arg, subcommand

from wilson.config import RECIPES, Config
from wilson.errors import UserError

Options = Annotated[Config, arg(name="")]  # options of a configuration, without a prefix


def parse(arguments: list[str]) -> Any:
    """The command that the arguments name, its options filled in."""
    recipe = named_recipe(arguments)
    tree = Union[  # noqa: UP007  built at run time: the defaults are the recipe's
        Annotated[Demo, subcommand("demo", default=Demo())],
        Annotated[Run, subcommand("run", default=Run(config=recipe))],
        Annotated[Train, subcommand("train", default=Train(config=recipe))],
        Annotated[Evaluate, subcommand("evaluate")],
        Annotated[Predict, subcommand("predict")],
        Annotated[Report, subcommand("report")],
        Annotated[DataCheck | DataExport, subcommand("data", description="Check or export a data set.")],
        Annotated[WeightsImport | WeightsChecksum, subcommand("weights", description="Import published weights.")],
        Annotated[Ops, subcommand("ops")],
    ]
    description = (
        "Weakly incremental semantic segmentation. COMMAND --help lists the options; --debug shows tracebacks."
    )
    return tyro.cli(tree, args=arguments, prog="wilson", description=description)


def named_recipe(arguments: list[str]) -> Config:
    """The recipe that --recipe names, before the other options change it; the demo's for the built-in data set."""
    name = "voc"
    for position, argument in enumerate(arguments):
        if argument.startswith("--recipe"):
            name = argument.partition("=")[2] or (arguments[position + 1] if position + 1 < len(arguments) else "")
    if name not in RECIPES:
        raise UserError(f"--recipe: expected {' or '.join(RECIPES)}, got '{name}'")
    return RECIPES[name]


@dataclass(frozen=True)
class Where:
    """Where a run writes."""

    out: Path | None = None
    """Folder of the results; runs/TIME-TASK-METHOD by default. A folder that is not empty is refused."""
    resume: bool = False
    """Continue the run in the folder where it stopped."""
    overwrite: bool = False
    """Remove the run in the folder first."""


Folder = Annotated[Where, arg(name="")]


@dataclass(frozen=True)
class Demo:
    """Train the base step, fine-tuning and WILSON on the built-in data set, and compare them in one report."""

    where: Folder = field(default_factory=Where)
    seed: int = 0
    """Seed of data, initialisation, order and augmentation."""

    def __call__(self) -> int:
        from wilson.demo import demo
        from wilson.run import default_folder

        config = replace(RECIPES["demo"], seed=self.seed)
        out = self.where.out or default_folder(replace(config, method="wilson"), suffix="demo")
        report = demo(config, out, resume=self.where.resume, overwrite=self.where.overwrite)
        print(f"open {report}")
        return 0


@dataclass(frozen=True)
class Run:
    """Train all steps of a task, evaluate after each, and write the report."""

    config: Options
    where: Folder = field(default_factory=Where)

    def __call__(self) -> int:
        from wilson.run import default_folder, run

        out = self.where.out or default_folder(self.config)
        run(self.config, out, resume=self.where.resume, overwrite=self.where.overwrite)
        return 0


@dataclass(frozen=True)
class Train:
    """Train one step of a task."""

    config: Options
    where: Folder = field(default_factory=Where)
    number: Annotated[int, arg(name="step")] = 0
    """Number of the step, from 0."""
    start: Path | None = None
    """Checkpoint of the step before (RUN/step-T/checkpoint.pt); none for step 0."""

    def __call__(self) -> int:
        from wilson.run import default_folder, run

        out = self.where.out or default_folder(self.config)
        where = {"resume": self.where.resume, "overwrite": self.where.overwrite}
        run(self.config, out, steps=[self.number], start=self.start, **where)
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Print IoU of a checkpoint on the validation images."""

    checkpoint: Positional[Path]
    """checkpoint.pt of a step."""
    root: str | None = None
    """Data set; by default the one it was trained on."""
    split: str | None = None
    """Name of the list of images; by default the validation list of the run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """File for the figures, as in results.json."""

    def __call__(self) -> int:
        from wilson.run import evaluate_checkpoint

        evaluate_checkpoint(self.checkpoint, self.root, self.split, self.device, self.out)
        return 0


@dataclass(frozen=True)
class Predict:
    """Segment images: a palette mask and a coloured overlay of each."""

    images: Positional[tuple[Path, ...]]
    """Image files."""
    checkpoint: Path
    """checkpoint.pt of a step."""
    out: Path | None = None
    """Folder for the masks (NAME.png) and overlays (NAME_overlay.jpg); runs/TIME-predict by default."""
    overwrite: bool = False
    """Write into a folder that is not empty."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __call__(self) -> int:
        from wilson.predict import predict
        from wilson.run import choose_device, timed_folder

        out = self.out or timed_folder("predict")
        predict(self.images, self.checkpoint, out, choose_device(self.device), overwrite=self.overwrite)
        return 0


@dataclass(frozen=True)
class Report:
    """Compare runs in one self-contained HTML file."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs."""
    out: Path = Path("report.html")
    """The file to write."""

    def __call__(self) -> int:
        from wilson import report

        print(report.write(self.runs, self.out))
        return 0


@dataclass(frozen=True)
class _DataCheck:
    """Read a data set and report what is there and what is wrong; exit status 1 on errors."""

    root: Positional[Path]
    """Folder in the VOC layout."""
    task: str | None = None
    """A task whose split sizes are counted."""
    protocol: Literal["disjoint", "overlap"] = "overlap"
    """Which images belong to a step."""

    def __call__(self) -> int:
        from wilson.data.check import check, render

        result = check(self.root, self.task, self.protocol)
        print(render(result))
        return 1 if result.errors else 0


@dataclass(frozen=True)
class _DataExport:
    """Write the built-in data set in the VOC layout."""

    out: Path = Path("data/synthetic")
    """Folder to write; a folder that is not empty is refused."""
    train_images: int = 2100
    """Images of the training split."""
    val_images: int = 300
    """Images of the validation split."""
    size: int = 64
    """Height and width in pixels."""
    seed: int = 0
    """Seed of the images."""

    def __call__(self) -> int:
        from wilson.data.export import export
        from wilson.data.synthetic import Synthetic

        counts = {"train": self.train_images, "val": self.val_images}
        export({split: Synthetic(split, n, self.size, self.seed) for split, n in counts.items()}, self.out)
        print(self.out)
        return 0


DataCheck = Annotated[_DataCheck, subcommand("check")]
DataExport = Annotated[_DataExport, subcommand("export")]


@dataclass(frozen=True)
class _WeightsImport:
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
        from wilson.weights import import_weights

        import_weights(
            self.file, self.out, self.backbone, task=self.task, root=self.root, crop=self.crop, stride=self.stride
        )
        return 0


@dataclass(frozen=True)
class _WeightsChecksum:
    """Print the checksum of a file's tensors, as weights import does: equal for equal weights."""

    file: Positional[Path]
    """A .safetensors file, or the checkpoint of a step."""

    def __call__(self) -> int:
        from wilson.weights import checksum, read

        print(f"sha256 {checksum(read(self.file))}")
        return 0


WeightsImport = Annotated[_WeightsImport, subcommand("import")]
WeightsChecksum = Annotated[_WeightsChecksum, subcommand("checksum")]


@dataclass(frozen=True)
class Ops:
    """Print which provider serves each op on each device, and why a better one is missing."""

    def __call__(self) -> int:
        from wilson import ops

        ops.providers()
        return 0

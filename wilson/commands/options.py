"""What several commands share: the options of a configuration, where a run writes, and what maps are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from tyro.conf import arg
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from wilson.config import Config, from_dict, limits
from wilson.errors import UserError

Options = Annotated[Config, arg(name="")]  # options of a configuration, without a prefix

registry = ConstructorRegistry()


@registry.struct_rule
def _section(info: StructTypeInfo) -> StructConstructorSpec | None:
    """A configuration or a section of it for tyro: the help shows ranges, and the result is a dict of plain values.

    Only :func:`checked` makes the objects, as it knows an option by its full name.
    """
    if not hasattr(info.type, "__pydantic_fields__"):
        return None

    def values(**options: Any) -> dict[str, Any]:
        return options

    values.__doc__ = info.type.__doc__  # the heading in the help
    default = info.default if isinstance(info.default, info.type) else info.type()
    hints = get_type_hints(info.type, include_extras=True)
    fields = [
        StructFieldSpec(name, hints[name], getattr(default, name), _help(documented.description, limits(hints[name])))
        for name, documented in info.type.__pydantic_fields__.items()
    ]
    return StructConstructorSpec(values, tuple(fields))


def _help(text: str | None, limits: str) -> str | None:
    return text and " ".join(text.split()) + (f" ({limits})" if limits else "")


def checked(command: Any) -> Any:
    """The command with its configuration, if it has one, made of the values; UserError names a wrong one."""
    values = vars(command)
    return replace(command, config=from_dict(values["config"], flag)) if "config" in values else command


def flag(option: str) -> str:
    """An option as the command line calls it."""
    return "--" + option.replace("_", "-")


@dataclass(frozen=True)
class Where:
    """Where a run writes."""

    out: Path | None = None
    """Folder of the results; runs/TIME-TASK-METHOD by default. A folder that is not empty is refused."""
    resume: bool = False
    """Continue the run in the folder where it stopped."""
    overwrite: bool = False
    """Remove the run in the folder first."""

    def folder(self, config: Config) -> Path:
        """The folder of a run; `torchrun --max-restarts` needs --out, so that restarted processes find it again."""
        from wilson import distributed
        from wilson.runs.folder import default_folder

        if self.out is None and distributed.may_restart():
            raise UserError("torchrun --max-restarts: give --out FOLDER, so that restarted processes find the run")
        return self.out or default_folder(config)


Folder = Annotated[Where, arg(name="")]


@dataclass(frozen=True)
class MapsOf:
    """The images that maps are made of, and where the maps go."""

    out: Path
    """Folder of the maps, a NAME.npz for each image; what is there already is kept."""
    root: str = "data/voc"
    """Folder in the layout of VOC or COCO, or synthetic for the built-in data set."""
    split: str = "train_aug"
    """Name of the list of images (COCO: train2017, built-in data set: train)."""
    labels: str | None = None
    """Images with labels, as in --data.labels, instead of those of the list."""
    classes: str | None = None
    """Names or ids of the classes, with commas; None for all of the data set."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


Images = Annotated[MapsOf, arg(name="")]

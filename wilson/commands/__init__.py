"""The commands, one dataclass each: fields are options; calling it does the work and returns the exit status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Union

import tyro
from tyro.conf import subcommand

from wilson.config import RECIPES, Config
from wilson.errors import UserError

from .ablate import Ablate
from .data import DataBench, DataCheck, DataExport
from .export import Export
from .results import Evaluate, Predict, Report
from .training import Demo, Run, Train
from .weights import WeightsChecksum, WeightsImport


def parse(arguments: list[str]) -> Any:
    """The command that the arguments name, its options filled in."""
    recipe = RECIPES["voc"] if "ablate" in arguments[:1] else named_recipe(arguments)  # whose --recipe is a file
    tree = Union[  # noqa: UP007  built at run time: the defaults are the recipe's
        Annotated[Demo, subcommand("demo", default=Demo())],
        Annotated[Run, subcommand("run", default=Run(config=recipe))],
        Annotated[Train, subcommand("train", default=Train(config=recipe))],
        Annotated[Ablate, subcommand("ablate")],
        Annotated[Evaluate, subcommand("evaluate")],
        Annotated[Predict, subcommand("predict")],
        Annotated[Export, subcommand("export")],
        Annotated[Report, subcommand("report")],
        Annotated[
            DataCheck | DataExport | Annotated[DataBench, subcommand("bench", default=DataBench(config=recipe))],
            subcommand("data", description="Check, export or load a data set."),
        ],
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
class Ops:
    """Print which provider serves each op on each device, and why a better one is missing."""

    def __call__(self) -> int:
        from wilson import ops

        ops.providers()
        return 0

"""The entry point of the command line.

Exit status: 0 good, 1 errors in the data, 2 a user's mistake, 70 a fault of wilson, 130 interrupted, 141 the reader of
the output has gone (`| head`).
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Union

from wilson.commands.ops import Ops
from wilson.errors import UserError
from wilson.printing import CLOSED, forgive_characters, printable, readers_left

if TYPE_CHECKING:
    from wilson.config import Config

INSTALL = 'pip install "wilson-seg[train]"'
ONNX = ("onnx", "onnxscript", "onnxruntime")
PAGE = ("gradio", "starlette")
PRIOR = ("open_clip", "skimage", "tokenizers", "transformers")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a mistake that the user can fix prints one line and returns 2 (`--debug` adds the traceback).

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        forgive_characters()
        command = Ops() if arguments == ["ops"] else parse(arguments)  # parsing needs the train extra, ops does not
        status = command()
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return interrupted()
    except Exception as error:
        if caused_by_interrupt(error):
            return interrupted()
        if isinstance(error, BrokenPipeError) and readers_left():
            return CLOSED
        line = explain(error)
        if line is None or debug:
            traceback.print_exc()
        if line is not None:
            print(f"wilson: {printable(line)}", file=sys.stderr)
        return 2 if line is not None else 70


def interrupted() -> int:
    """Say that Ctrl-C ended the command; returns its exit status."""
    print("wilson: interrupted; --resume continues a run", file=sys.stderr)
    return 130


def caused_by_interrupt(error: BaseException | None) -> bool:
    """Whether an error came up while Ctrl-C was ending the command, as when other processes end before this one."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def parse(arguments: list[str]) -> Callable[[], int]:
    """The command that the arguments name, its options filled in."""
    import tyro
    from tyro.conf import subcommand

    from wilson.commands import (
        ablate,
        add,
        data_bench,
        data_check,
        data_export,
        demo,
        evaluate,
        export,
        options,
        predict,
        prior_clip,
        prior_head,
        prior_names,
        regions,
        report,
        results,
        run,
        saliency,
        save,
        serve,
        train,
        weights_checksum,
        weights_import,
    )

    recipe = named_recipe(arguments)
    data = Union[  # noqa: UP007  trees of commands are built at run time: the defaults are the recipe's
        Annotated[data_check.DataCheck, subcommand("check")],
        Annotated[data_export.DataExport, subcommand("export")],
        Annotated[data_bench.DataBench, subcommand("bench", default=data_bench.DataBench(config=recipe))],
    ]
    weights = Union[  # noqa: UP007
        Annotated[weights_import.WeightsImport, subcommand("import")],
        Annotated[weights_checksum.WeightsChecksum, subcommand("checksum")],
    ]
    prior = Union[  # noqa: UP007
        Annotated[prior_head.PriorHead, subcommand("head")],
        Annotated[prior_clip.PriorClip, subcommand("clip")],
        Annotated[prior_names.PriorNames, subcommand("names")],
    ]
    tree = Union[  # noqa: UP007
        Annotated[demo.Demo, subcommand("demo", default=demo.Demo())],
        Annotated[run.Run, subcommand("run", default=run.Run(config=recipe))],
        Annotated[train.Train, subcommand("train", default=train.Train(config=recipe))],
        Annotated[add.Add, subcommand("add")],
        Annotated[ablate.Ablate, subcommand("ablate")],
        Annotated[evaluate.Evaluate, subcommand("evaluate")],
        Annotated[predict.Predict, subcommand("predict")],
        Annotated[export.Export, subcommand("export")],
        Annotated[save.Save, subcommand("save")],
        Annotated[serve.Serve, subcommand("serve")],
        Annotated[report.Report, subcommand("report")],
        Annotated[results.Results, subcommand("results")],
        Annotated[data, subcommand("data", description="Check, export or load a data set.")],
        Annotated[saliency.Saliency, subcommand("saliency")],
        Annotated[regions.Regions, subcommand("regions")],
        Annotated[prior, subcommand("prior", description="Make priors of new classes with models from outside.")],
        Annotated[weights, subcommand("weights", description="Import published weights.")],
        Annotated[Ops, subcommand("ops")],
    ]
    description = (
        "Weakly incremental semantic segmentation. COMMAND --help lists the options; --debug shows tracebacks."
    )
    command = tyro.cli(tree, args=arguments, prog="wilson", description=description, registry=options.registry)
    return options.checked(command)


def named_recipe(arguments: list[str]) -> Config:
    """The recipe that --recipe names, in commands that have it, before the other options change it; else voc's."""
    from wilson.config import RECIPES

    name = "voc"
    if arguments[:1] not in (["run"], ["train"]) and arguments[:2] != ["data", "bench"]:
        return RECIPES[name]
    for position, argument in enumerate(arguments):
        if argument.startswith("--recipe"):
            name = argument.partition("=")[2] or (arguments[position + 1] if position + 1 < len(arguments) else "")
    if name not in RECIPES:
        raise UserError(f"--recipe: expected {' or '.join(RECIPES)}, got '{name}'")
    return RECIPES[name]


def explain(error: Exception) -> str | None:
    """One line for what a user can mend; None for anything else, which is a bug and shows its traceback."""
    import torch

    text = str(error).strip()
    if isinstance(error, UserError):
        # An error of a data worker carries a traceback; its last line is the message
        worker = text.startswith("Caught UserError")
        return text.splitlines()[-1].removeprefix("wilson.errors.UserError: ") if worker else text
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("wilson"):
        if error.name in ONNX:
            return f'the package {error.name} is missing; install what ONNX needs: pip install "wilson-seg[onnx]"'
        if error.name in PAGE:
            return f'the package {error.name} is missing; install what the page needs: pip install "wilson-seg[serve]"'
        if error.name in PRIOR:
            return f'the package {error.name} is missing; install what priors need: pip install "wilson-seg[prior]"'
        return f"the package {error.name} is missing; install what training needs: {INSTALL}"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return "out of memory; choose a smaller batch (--base.batch, --step.batch, --batch) or crop (--data.crop)"
    if isinstance(error, PermissionError):
        return f"no permission for {named(error)}; choose another folder, for results with --out"
    if "DataLoader worker" in text:
        reason = text.splitlines()[-1]
        return f"a process that loads images died ({reason}); use fewer --data.workers, --resume continues a run"
    if isinstance(error, FileNotFoundError):
        return f"{named(error)}: no such file or folder; put it back if it was moved or removed during a run"
    if isinstance(error, OSError):
        where = f": {named(error)}" if error.filename else ""
        space = "free some space, then " if error.errno in FULL else ""
        return f"{error.strerror or text}{where}; whatever was complete is kept, {space}--resume continues a run"
    return None


def named(error: OSError) -> str:
    """The file of an error; some libraries give its name as bytes."""
    return os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)

"""The entry point of the command line. Exit status: 0 good, 1 errors in the data, 2 a user's mistake."""

from __future__ import annotations

import errno
import sys
import threading
import traceback
from collections.abc import Sequence

from wilson.errors import UserError

INSTALL = 'pip install "wilson-seg[train]"'
ONNX = ("onnx", "onnxscript", "onnxruntime")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; what a user can mend ends in one line and status 2 (`--debug` shows where it arose).

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    threads = threading.excepthook
    if not debug:  # TensorBoard's writer shows a traceback before it hands the error to the run
        threading.excepthook = lambda failed: None if isinstance(failed.exc_value, OSError) else threads(failed)
    try:
        if arguments == ["ops"]:  # needs nothing of the train extra
            from wilson import ops

            ops.providers()
            return 0
        from wilson.commands import parse

        return parse(arguments)()
    except KeyboardInterrupt:
        print("wilson: interrupted; --resume continues a run", file=sys.stderr)
        return 130
    except Exception as error:
        line = explain(error)
        if line is None or debug:
            traceback.print_exc()
        if line is not None:
            print(f"wilson: {line}", file=sys.stderr)
        return 2 if line is not None else 70
    finally:
        threading.excepthook = threads


def explain(error: Exception) -> str | None:
    """One line for what a user can mend; None for anything else, which is a bug and shows its traceback."""
    import torch

    text = str(error).strip()
    if isinstance(error, UserError):
        # Out of a data worker the text is a traceback, of which the last line is the message
        worker = text.startswith("Caught UserError")
        return text.splitlines()[-1].removeprefix("wilson.errors.UserError: ") if worker else text
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("wilson"):
        if error.name in ONNX:
            return f'the package {error.name} is missing; install what ONNX needs: pip install "wilson-seg[onnx]"'
        return f"the package {error.name} is missing; install what training needs: {INSTALL}"
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text:
        return "out of memory; choose a smaller batch (--base.batch, --step.batch, --batch) or crop (--data.crop)"
    if isinstance(error, PermissionError):
        return f"no permission for {error.filename}; choose another folder, for results with --out"
    if "DataLoader worker" in text:
        reason = text.splitlines()[-1]
        return f"a process that loads images died ({reason}); use fewer --data.workers, --resume continues a run"
    if isinstance(error, FileNotFoundError):
        return f"{error.filename}: no such file or folder; put it back if it was moved or removed during a run"
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        space = "free some space, then " if error.errno in FULL else ""
        return f"{error.strerror or text}{where}; whatever was complete is kept, {space}--resume continues a run"
    return None

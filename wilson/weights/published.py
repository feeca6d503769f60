"""Read a file of published weights: tensors by name, nothing executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from wilson import tensor_files
from wilson.errors import UserError
from wilson.tensor_files import ForeignObjectError

KINDS = ("state_dict", "model_state")  # key of the weights in ImageNet checkpoints, and in step checkpoints
CLASSIFIER = "classifier."  # names of ImageNet's classifier begin with it


@dataclass(frozen=True)
class PublishedFile:
    """The tensors of a file by name, without the `module.` of data-parallel training.

    Attributes:
        path: the file.
        tensors: what a translation must account for.
        left_out: names of everything else in the file: optimizer, localizer, ImageNet's classifier.
    """

    path: Path
    tensors: dict[str, Any]
    left_out: tuple[str, ...]

    @property
    def is_step(self) -> bool:
        """Whether the file holds a segmentation model rather than a backbone alone."""
        return any(key.startswith(("body.", "head.", "cls.")) for key in self.tensors)

    @classmethod
    def read(cls, path: Path) -> PublishedFile:
        """Read a checkpoint, or a file with nothing but its `state_dict` or `model_state`.

        Raises:
            UserError: the file is missing, broken or in another layout, or holds more than tensors and plain values.
        """
        values = _load(path)
        kind = next((k for k in KINDS if isinstance(values, Mapping) and isinstance(values.get(k), Mapping)), None)
        state = values if kind is None else values[kind]
        if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
            raise UserError(
                f"weights {path}: expected a dictionary with {' or '.join(KINDS)}, or one of tensors; "
                f"got {describe(state)}"
            )
        named = {str(key).removeprefix("module."): value for key, value in state.items()}
        dropped = [key for key in named if key.startswith(CLASSIFIER)]
        rest = [] if kind is None else [str(key) for key in values if key != kind]
        return cls(path, {k: v for k, v in named.items() if k not in dropped}, (*dropped, *rest))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"weights {path}: no such file")
    try:
        return tensor_files.read(path, safe=_numpy_numbers())
    except ForeignObjectError as error:
        raise UserError(
            f"weights {path}: expected tensors and plain values, got {error.name}, which only code can restore; "
            "nothing was run. Let the code that wrote the file save its tensors alone (torch.save), and import those"
        ) from error
    except ValueError as error:
        raise UserError(
            f"weights {path}: not a readable checkpoint ({error}); it may be truncated; download it again"
        ) from error


def _numpy_numbers() -> list[Any]:
    """The types that make up a NumPy number, such as a best score, under the names of NumPy 1 and 2.

    They only construct plain numbers, and few checkpoints of a training loop come without one.
    """
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
    return [np.dtype, *kinds, *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core"))]


def describe(value: Any) -> str:
    """The shape of a tensor, with its dtype unless that is floating; the type of anything else."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}" + ("" if value.is_floating_point() else f" {value.dtype}")
    if isinstance(value, Mapping):
        return f"a dictionary with {', '.join(map(str, list(value)[:5])) or 'nothing'}"
    return f"a {type(value).__name__}"

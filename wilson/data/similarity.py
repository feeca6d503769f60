"""Tables of how near the names of classes are, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wilson.atomic import replacing
from wilson.data.names import find_all
from wilson.errors import UserError, first_line


def read_similarity(file: Path, names: Sequence[str]) -> Tensor:
    """Read a table and put it into the order of these names.

    Args:
        file: .npz with `classes`, M names, and `similarity`, (M, M), which :func:`write_similarity` writes.
        names: of C classes, background first.

    Returns:
        float32 (C, C).

    Raises:
        UserError: the file is broken, the table is not square or not finite, it lacks a class, or the similarity of a
            class and the background, by which the others are divided, is not positive.
    """
    try:
        with np.load(file, allow_pickle=False) as values:
            classes, table = [str(name) for name in values["classes"]], np.asarray(values["similarity"], np.float32)
    except Exception as error:  # numpy has half a dozen kinds for a broken file
        raise UserError(
            f"{file}: is no table of similarity: {first_line(error)}; wilson prior names writes one"
        ) from error
    if table.shape != (len(classes), len(classes)):
        raise UserError(
            f"{file}: expected a table ({len(classes)}, {len(classes)}), a row and a column for each of its classes, "
            f"got {table.shape}; wilson prior names writes one"
        )
    found, missing = find_all(names, classes)
    if missing:
        raise UserError(
            f"{file}: lacks the class {missing[0]}; make the table of all classes of the task anew (wilson prior names)"
        )
    table = table[np.ix_(found, found)]
    for wrong, what in ((~np.isfinite(table), "a finite"), (table[:, :1] <= 0, "a positive")):
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise UserError(
                f"{file}: the similarity of {names[row]} and {names[column]} is {table[row, column]}, expected {what} "
                "number; make the table anew (wilson prior names)"
            )
    return torch.from_numpy(table)


def write_similarity(file: Path, names: Sequence[str], table: Tensor) -> None:
    """Write a table (C, C) of named classes, whole or not at all; its folder is created."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, classes=np.array(list(names)), similarity=table.numpy())

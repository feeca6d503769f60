"""Files of torch.save, read without executing anything and without growing beyond their size on the disk."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from wilson.errors import first_line


class ForeignObjectError(ValueError):
    """A file holds an object that only code can restore; `name` is its type."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it holds {name}, which only code can restore; nothing was run")
        self.name = name


def read(path: Path, safe: Sequence[Any] = ()) -> Any:
    """Read plain values and tensors.

    Args:
        path: the file.
        safe: more types that may be restored, as for torch.serialization.safe_globals.

    Raises:
        ValueError: the file is no whole file of this kind, or is larger inside than outside; one line says why.
        OSError: it cannot be read.
    """
    if zipfile.is_zipfile(path):
        check_archive(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(safe)):
            warnings.simplefilter("ignore")  # on formats of other versions: for their authors
            values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch has a dozen kinds for a broken file, and ways around its refusal in some
        raise told(error) from error
    size = path.stat().st_size
    if any(tensor.numel() * tensor.element_size() > size for tensor in tensors(values)):
        raise ValueError("it holds a tensor larger than the file")
    return values


def check_archive(file: Path | IO[bytes]) -> None:
    """Raise a ValueError for a ZIP archive that is damaged, compressed, or larger inside than outside.

    torch neither compresses files nor compares their checksums; a compressed one could fill the memory.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            size = archive.fp.seek(0, 2) if archive.fp else 0
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed, which torch's files never are")
            if sum(max(entry.file_size, entry.compress_size) for entry in entries) > size:
                raise ValueError("its entries are larger than the file")
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it is damaged")
    except ValueError:
        raise
    except Exception as error:  # zipfile has half a dozen kinds for a broken archive
        raise ValueError(f"its archive is damaged: {first_line(error)}") from error


def told(error: Exception) -> ValueError:
    """The reason why torch refused a file, without its advice to read the file in another, dangerous way."""
    text = str(error)
    if found := re.search(r"(?i)unsupported (?:global: )?global ([\w.]+)", text):
        return ForeignObjectError(found[1])
    if detail := text.partition("WeightsUnpickler error:")[2].strip():
        return ValueError(detail.splitlines()[0][:200])
    if isinstance(error, RuntimeError):
        return ValueError(first_line(error).partition(". ")[0])
    return ValueError("it is no file of torch.save")


def tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested dictionaries, lists and tuples."""
    stack, seen = [values], set()
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            stack += value.values() if isinstance(value, Mapping) else value

"""Dataclasses that refuse a wrong value when they are made, in one line that names it."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, ValidationError

from wilson.errors import UserError

from .ranges import expected

T = TypeVar("T")

CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def told(kind: type[T]) -> type[T]:
    """Let a pydantic dataclass raise UserError, in one line."""
    validate = kind.__init__

    @wraps(validate)
    def __init__(self: T, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        try:
            validate(self, *args, **kwargs)
        except ValidationError as error:
            raise mistake(error, kind) from None

    kind.__init__ = __init__  # type: ignore[assignment, method-assign]
    return kind


def mistake(error: ValidationError, kind: type, called: Callable[[str], str] = str) -> UserError:
    """The first mistake that pydantic found in a dataclass.

    Args:
        error: pydantic's.
        kind: the dataclass.
        called: from an option's name, as in losses.alpha, to what the user calls it.
    """
    first = error.errors(include_url=False)[0]
    hint: Any = kind
    names: list[str] = []
    for part in first["loc"]:
        if not is_dataclass(hint):  # an item of a tuple
            break
        hints = get_type_hints(hint, include_extras=True)
        positional = isinstance(part, int) and first["type"] != "invalid_key" and part < len(hints)
        name = list(hints)[part] if positional else str(part)  # type: ignore[index]
        names.append(name)
        if name not in hints:
            near = get_close_matches(name, hints, n=1)
            return UserError(
                f"{called('.'.join(names))}: no such option" + (f"; did you mean {near[0]}?" if near else "")
            )
        hint = hints[name]
    if first["type"] == "value_error":
        text = str(first["ctx"]["error"])
    else:
        text = f"expected {expected(hint)}, got {short(first['input'])}"
    return UserError(f"{called('.'.join(names))}: {text}" if names else text)


def short(value: Any) -> str:
    """A value as an error shows it: in one line, its middle left out if it is long."""
    limited = reprlib.Repr()
    limited.maxlevel, limited.maxstring, limited.maxother = 2, 100, 100
    try:
        return limited.repr(value)
    except ValueError:  # Python writes out no integer of thousands of digits
        return "a number of thousands of digits"

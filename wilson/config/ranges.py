"""The ranges that options may have, each written once, and the words for them in help texts and errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from types import NoneType
from typing import Annotated, Any, Literal, TypeAlias, get_args, get_origin

from pydantic import BeforeValidator, Field, StrictBool
from pydantic.fields import FieldInfo


def _from_text(value: Any) -> Any:
    """YAML takes 1e-3 for text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value  # refused as text


# Strict: true is not 1, and "3" is no number. Lists become tuples, as YAML has no others.
Flag: TypeAlias = StrictBool
Integer: TypeAlias = Annotated[int, Field(strict=True)]
Number: TypeAlias = Annotated[float, Field(strict=True), BeforeValidator(_from_text)]

Count: TypeAlias = Annotated[Integer, Field(ge=1)]
CountOrZero: TypeAlias = Annotated[Integer, Field(ge=0)]
Counts: TypeAlias = Annotated[tuple[Count, ...], Field(min_length=1)]
# Exact in JSON readers that know floats alone, and seed * 1000 + step, which seeds a step, fits in 63 bits. Numpy's
# SeedSequence takes no negative numbers.
Seed: TypeAlias = Annotated[Integer, Field(ge=0, lt=2**53)]

Share: TypeAlias = Annotated[Number, Field(ge=0, le=1)]
PositiveShare: TypeAlias = Annotated[Number, Field(gt=0, le=1)]
BelowOne: TypeAlias = Annotated[Number, Field(ge=0, lt=1)]
Positive: TypeAlias = Annotated[Number, Field(gt=0)]
NotNegative: TypeAlias = Annotated[Number, Field(ge=0)]
AtLeastOne: TypeAlias = Annotated[Number, Field(ge=1)]

_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_LISTS = {int: "whole numbers", float: "numbers"}


def limits(hint: Any) -> str:
    """The range in the type of an option, as in "at least 1"; empty for an option without."""
    return " and ".join(dict.fromkeys(_limits(hint)))


def expected(hint: Any) -> str:
    """What an option of this type takes, as in "a whole number, at least 1"."""
    optional = NoneType in get_args(hint)
    kind = get_args(hint)[0] if optional else hint
    return ", ".join(part for part in (_kind(kind), limits(kind), optional and "or None (null in YAML)") if part)


def _limits(hint: Any) -> Iterator[str]:
    if get_origin(hint) is Annotated:
        bounds = [bound for note in hint.__metadata__ if isinstance(note, FieldInfo) for bound in note.metadata]
        for name, words in _BOUNDS.items():
            yield from (f"{words} {getattr(bound, name)}" for bound in bounds if hasattr(bound, name))
    for part in get_args(hint):
        yield from _limits(part)


def _kind(hint: Any) -> str:
    hint = _plain(hint)
    if get_origin(hint) is Literal:
        return ", ".join(get_args(hint))
    if get_origin(hint) is tuple:
        items = get_args(hint)
        return f"{'one or more' if Ellipsis in items else len(items)} {_LISTS[_plain(items[0])]}"
    return "options with their values" if is_dataclass(hint) else _KINDS[hint]


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint

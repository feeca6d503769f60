"""Which unit of a multiprocessor executes an instruction of PTX."""

from __future__ import annotations

import enum


class Unit(enum.IntEnum):
    """In the order of machine/machine.h."""

    INTEGER = 0  # and predicates, conversions and moves of bits
    FLOAT = 1
    SPECIAL = 2  # exponentials, logarithms, roots, and divisions, which begin with a reciprocal
    MEMORY = 3  # of any space, and what lanes of a warp exchange
    CONTROL = 4  # branches and barriers
    NONE = 5  # machine code has it as an operand, or not at all


_SPECIAL = {"ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh"}
_MEMORY = {"ld", "ldu", "st", "atom", "red", "cp", "ldmatrix", "stmatrix", "shfl", "vote", "match", "redux"}
_CONTROL = {"bra", "brx", "ret", "exit", "bar", "barrier", "trap", "brkpt"}
_NONE = {"mov", "cvta", "label", "branchtargets", "createpolicy"}


def unit(op: str) -> Unit:
    """The unit of an instruction with its modifiers, as `add.rn.f32`."""
    name, *parts = op.split(".")
    if name in _NONE or parts[:1] == ["param"]:
        return Unit.NONE
    if name in _CONTROL:
        return Unit.CONTROL
    if name in _MEMORY:
        return Unit.MEMORY
    real = any("f" in part and part[-1].isdigit() for part in parts)  # f32, bf16x2 and the like
    if name in _SPECIAL or (name == "div" and real):
        return Unit.SPECIAL
    return Unit.FLOAT if real and name not in ("cvt", "selp") else Unit.INTEGER

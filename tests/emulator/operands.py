"""Operands of PTX: registers, constants, variables and addresses, as slots of the machine's register file."""

from __future__ import annotations

import re
from collections.abc import Callable

from .program import SLOTS, SPECIAL, Kind, Registers, literal
from .ptx import WIDTH, Function, Module, PtxError, Statement
from .units import Unit, unit

SPACES = ("param", "global", "shared", "local", "const")


class Operands:
    """The operands of one kernel, and the instructions so far."""

    def __init__(self, module: Module, function: Function) -> None:
        self.module, self.function = module, function.parsed()
        self.registers = Registers(self.function.registers)
        self.symbols: dict[str, tuple[str, int]] = {}  # name: space, address in it
        self.shared_bytes = self.local_bytes = self.parameter_bytes = 0
        self.code: list[tuple] = []
        self.keys: dict[str, int] = {}
        self.labels: dict[str, int] = {}
        self.tables: dict[str, list[str]] = {}
        self.statement = Statement(0, "", ())
        self._counted: Statement | None = None  # the last one that the code has an instruction of
        self.dynamic: list[str] = []
        self.scratch = self.registers.temporary(64)  # for results that nobody wants
        self._place()

    # ------------------------------------------------------------------------------------------------- variables

    def _place(self) -> None:
        """Addresses of parameters and of shared and local variables."""
        self.parameters: list[tuple[int, int]] = []  # offset, size
        for parameter in self.function.parameters:
            at = _align(self.parameter_bytes, parameter.align)
            self.symbols[parameter.name] = ("param", at)
            self.parameters.append((at, parameter.size))
            self.parameter_bytes = at + parameter.size
        named = set(re.findall(r"[\w$]+", self.function.text))
        of_module = (v for v in self.module.variables if v.space != "shared" or v.name in named)  # not other kernels'
        for v in (*of_module, *self.function.variables):
            if v.space == "shared" and v.size:
                self.shared_bytes = _align(self.shared_bytes, v.align)
                self.symbols[v.name] = ("shared", self.shared_bytes)
                self.shared_bytes += v.size
            elif v.space == "shared":
                self.dynamic.append(v.name)
            elif v.space == "local":
                self.local_bytes = _align(self.local_bytes, v.align)
                self.symbols[v.name] = ("local", self.local_bytes)
                self.local_bytes += v.size
        self.local_bytes = _align(self.local_bytes, 16)
        self.shared_bytes = _align(self.shared_bytes, 16)  # the dynamic part follows
        for name in self.dynamic:
            self.symbols[name] = ("shared", self.shared_bytes)

    # -------------------------------------------------------------------------------------------------- emitting

    def _emit(self, key: str, kind: Kind = Kind.LANES, slots: list[int] = (), imm: object = 0) -> None:  # type: ignore[assignment]
        guard = self.statement.guard
        negate = guard.startswith("!")
        slot = self.registers.register(guard.lstrip("!")) if guard else -1
        number = self.keys.setdefault(key, len(self.keys)) if key else -1
        filled = (*slots, *(0,) * (SLOTS - len(slots)))
        # a statement is one instruction to a GPU, however many it becomes here
        executes = Unit.NONE if self._counted is self.statement else unit(self.statement.op)
        self._counted = self.statement
        self.code.append((number, kind, self.statement.line, slot, negate, executes, imm, filled))

    def _resized(self, slot: int, type_: str, bits: int, to: int | None = None) -> int:
        """A value of a type in a register of other width."""
        to = self.registers.temporary(bits) if to is None else to
        kind = "s" if type_[0] == "s" else "u"
        self._emit(f"resize.{kind}{WIDTH[type_]}.{bits}", slots=[to, slot])
        return to

    def read(self, operand: str, type_: str) -> int:
        """The slot of a source operand of a type."""
        bits = WIDTH[type_]
        if type_ == "pred":
            if operand.startswith("!"):
                slot = self.registers.temporary(1)
                self._emit("not.pred", slots=[slot, *[self.registers.register(operand[1:])] * 2])
                return slot
            if operand in ("true", "false", "-1", "1", "0"):
                return self.registers.constant(operand not in ("false", "0"), 1)
            return self.registers.register(operand)
        if operand in self.registers.widths:
            slot, width = self.registers.register(operand), self.registers.widths[operand]
        elif operand in SPECIAL:
            slot, width = self.registers.special(operand), 32
        elif operand == "WARP_SZ":
            return self.registers.constant(32, bits)
        elif operand in ("%clock", "%clock64", "%globaltimer", "%smid", "%nsmid", "%gridid"):
            return self.registers.constant(0, bits)
        elif operand in self.symbols:
            return self.registers.constant(self.symbols[operand][1], bits)
        else:
            value = literal(operand, bits)
            if value is None:
                raise PtxError(f"line {self.statement.line}: unknown operand {operand!r}")
            return self.registers.constant(value, bits)
        return slot if width == bits else self._resized(slot, f"u{width}", bits)

    def write(self, operand: str, type_: str) -> tuple[int, Callable[[], object]]:
        """The slot of a destination of a type, and what is to be done after it is written."""
        if operand == "_":
            return (self.scratch if type_ == "pred" else self.registers.temporary(WIDTH[type_])), _nothing
        slot, width = self.registers.register(operand), self.registers.widths[operand]
        if width == WIDTH[type_]:
            return slot, _nothing
        narrow = self.registers.temporary(WIDTH[type_])
        return narrow, lambda: self._resized(narrow, type_, width, slot)

    def _operate(self, key: str, result: str, sources: list[str], kind: Kind = Kind.LANES, imm: object = 0) -> None:
        """`key` on the operands: the first has the type `result`, the others those of `sources`."""
        operands = self.statement.operands
        reads = [self.read(o, t) for o, t in zip(operands[1:], sources, strict=True)]
        slot, after = self.write(operands[0], result)
        self._emit(key, kind, [slot, *reads], imm)
        after()

    def _address(self, operand: str) -> tuple[str, int, int]:
        """The space that a symbol names (or nothing), the slot of the address, and the offset."""
        match = re.match(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+))?\s*\]$", operand)
        assert match is not None, operand
        base, offset = match[1], int(match[2] or "0", 0)
        if base in self.registers.widths:
            return "", self.read(base, "b64"), offset
        space, address = self.symbols.get(base, ("", 0)) if not base.lstrip("-").isdigit() else ("", int(base))
        if base not in self.symbols and not base.lstrip("-").isdigit():
            raise PtxError(f"line {self.statement.line}: unknown symbol {base}")
        return space, self.registers.constant(address, 64), offset

    def _space(self, modifiers: list[str]) -> str:
        named = next((s for m in modifiers for s in SPACES if m == s or m.startswith(f"{s}_")), "generic")
        return "global" if named == "const" else named


def _nothing() -> None:
    pass


def elements(operand: str) -> list[str]:
    return [e.strip() for e in operand[1:-1].split(",")] if operand.startswith("{") else [operand]


def _align(at: int, to: int) -> int:
    return (at + to - 1) // to * to

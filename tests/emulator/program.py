"""A kernel as the machine runs it: where each register lies, and a list of encoded instructions."""

from __future__ import annotations

import ctypes
import enum
import struct

import numpy as np

from . import ptx

LANES = 32
SLOTS = 12
# One instruction; machine/schedule.cpp has the same
ENCODED = np.dtype(
    [("key", "i4"), ("kind", "i4"), ("line", "i4"), ("guard", "i4"), ("negate", "i4"), ("unit", "i4"),
     ("imm", "i8"), ("slot", "i4", SLOTS)]
)  # fmt: skip
# Registers that are given; machine/schedule.cpp fills them in this order
SPECIAL = [
    *(f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"),
    "%laneid", "%warpid", "%lanemask_eq", "%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge",
]  # fmt: skip


class Kind(enum.IntEnum):
    """How the machine's scheduler treats an instruction."""

    LANES = 0
    BRANCH = 1
    INDIRECT = 2
    EXIT = 3
    WARP = 4
    BARRIER = 5


class Registers:
    """The register file of a warp: 32 values side by side for each register, constant and special register."""

    def __init__(self, widths: dict[str, int]) -> None:
        self.widths = widths  # of the declared registers, in bits
        self.size = 0
        self._slots: dict[object, int] = {}
        self._constants: list[tuple[int, bytes]] = []

    def _new(self, key: object, bits: int) -> int:
        slot = self.size
        self._slots[key] = slot
        self.size += 8 if bits == 1 else LANES * bits // 8  # a predicate is one bit per lane
        return slot

    def register(self, name: str) -> int:
        slot = self._slots.get(name)
        return self._new(name, self.widths[name]) if slot is None else slot

    def temporary(self, bits: int) -> int:
        return self._new(object(), bits)

    def special(self, name: str) -> int:
        slot = self._slots.get(name)
        return self._new(name, 32) if slot is None else slot

    def constant(self, value: int, bits: int) -> int:
        value &= (1 << bits) - 1
        slot = self._slots.get((value, bits))
        if slot is None:
            slot = self._new((value, bits), bits)
            # predicate constants hold for all lanes
            data = (b"\xff" if value else b"\0") * 8 if bits == 1 else value.to_bytes(bits // 8, "little") * LANES
            self._constants.append((slot, data))
        return slot

    def initial(self) -> bytes:
        data = bytearray(b"\xcd" * self.size)  # what is read before it is written should look wrong
        for slot, value in self._constants:
            data[slot : slot + len(value)] = value
        return bytes(data)

    def specials(self) -> list[int]:
        return [self._slots.get(name, -1) for name in SPECIAL]


def literal(text: str, bits: int) -> int | None:
    """The bits of a constant operand, or None if the operand is none."""
    if text[:2] in ("0f", "0F"):
        value = struct.unpack(">f", bytes.fromhex(text[2:]))[0]
        return int(text[2:], 16) if bits == 32 else struct.unpack("<Q", struct.pack("<d", value))[0]
    if text[:2] in ("0d", "0D"):
        return int(text[2:], 16)
    try:
        return int(text.rstrip("U"), 0)
    except ValueError:
        return None


class Program:
    """A kernel ready to run on a machine."""

    def __init__(
        self,
        machine: ctypes.CDLL,
        code: np.ndarray,
        keys: list[str],
        registers: Registers,
        targets: list[int],
        local_bytes: int,
    ) -> None:
        for number, key in enumerate(keys):
            if not machine.ptx_knows(key.encode()):
                line = code["line"][code["key"] == number][0]
                raise ptx.PtxError(f"line {line}: the machine has no {key}")
        self._machine = machine
        initial = registers.initial()
        names = (ctypes.c_char_p * max(len(keys), 1))(*(key.encode() for key in keys))
        branch = np.array(targets or [0], np.int32)
        specials = np.array(registers.specials(), np.int32)
        machine.ptx_program.restype = ctypes.c_void_p
        self.handle = ctypes.c_void_p(
            machine.ptx_program(
                names, code.ctypes.data_as(ctypes.c_void_p), len(code), initial, ctypes.c_uint64(len(initial)),
                branch.ctypes.data_as(ctypes.c_void_p), len(targets), ctypes.c_uint64(local_bytes),
                specials.ctypes.data_as(ctypes.c_void_p),
            )
        )  # fmt: skip

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._machine.ptx_free(self.handle)

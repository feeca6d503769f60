"""Statements of PTX to instructions of the machine: operands become slots, modifiers that change nothing here go.

A statement may become several instructions, where a register is wider or narrower than the type that is operated on.
"""

from __future__ import annotations

import ctypes

import numpy as np

from .operands import SPACES, Operands, elements
from .program import ENCODED, Kind, Program
from .ptx import WIDTH, PtxError, Statement

# What never changes a result here: hints of caching, memory order and scope, and the default rounding
_IGNORED = {
    "rn", "approx", "full", "uni", "sync", "aligned", "volatile", "relaxed", "acquire", "release", "acq_rel", "weak",
    "cta", "cluster", "gpu", "sys", "nc", "noftz", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "to",
}  # fmt: skip
_NOTHING = {
    "membar", "fence", "griddepcontrol", "nanosleep", "discard", "prefetch", "prefetchu", "applypriority", "pmevent",
    "setmaxnreg",
}  # fmt: skip
# op: types of its sources, "t" being the type in the name; the destination has type t unless said in _RESULT
_PLAIN = {
    **dict.fromkeys(("add", "sub", "mul", "div", "rem", "min", "max", "and", "or", "xor", "copysign"), "tt"),
    **dict.fromkeys(("neg", "abs", "not", "cnot", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh"), "t"),
    **dict.fromkeys(("popc", "clz", "brev", "bfind"), "t"),
    **dict.fromkeys(("fma", "mad"), "ttt"),
    **dict.fromkeys(("shl", "shr"), "ti"),
    "prmt": "ttt",
    "shf": "tti",
    "bfe": "tii",
    "bfi": "ttii",
    "selp": "ttp",
}
_RESULT = {"popc": "u32", "clz": "u32", "bfind": "u32"}


class Decoder(Operands):
    """Decodes one kernel."""

    def program(self, machine: ctypes.CDLL, globals_at: dict[str, int]) -> Program:
        """`globals_at`: addresses of the module's variables."""
        for name, address in globals_at.items():
            self.symbols[name] = ("global", address)
        for statement in self.function.statements:
            self.statement = statement
            self._decode()
        self._emit("", Kind.EXIT)  # a body may end without ret
        targets: list[int] = []
        code = np.zeros(len(self.code), ENCODED)
        for at, (key, kind, line, guard, negate, executes, imm, slots) in enumerate(self.code):
            if kind == Kind.BRANCH:
                imm = self.labels[imm]
            elif kind == Kind.INDIRECT:
                labels, imm = self.tables[imm], len(targets)
                targets += [self.labels[label] for label in labels]
            code[at] = (key, kind, line, guard, negate, executes, imm, slots)
        return Program(machine, code, list(self.keys), self.registers, targets, self.local_bytes)

    # -------------------------------------------------------------------------------------------------- decoding

    def _decode(self) -> None:
        parts = self.statement.op.split(".")
        op, kinds = parts[0], [p for p in parts[1:] if p in WIDTH]
        modifiers = [p for p in parts[1:] if p not in WIDTH]
        special = getattr(self, f"_op_{op}", None)
        try:
            if special:
                special(modifiers, kinds)
            elif op in _PLAIN:
                self._plain(op, [m for m in modifiers if m not in _IGNORED], kinds[-1])
            elif op not in _NOTHING:
                raise PtxError(f"line {self.statement.line}: unknown instruction {self.statement}")
        except (KeyError, ValueError, IndexError, AttributeError, StopIteration) as error:
            raise PtxError(f"line {self.statement.line}: cannot decode {self.statement}: {error!r}") from error

    def _plain(self, op: str, modifiers: list[str], type_: str) -> None:
        real = "f" in type_
        sources = [{"t": type_, "i": "u32", "p": "pred"}[s] for s in _PLAIN[op]]
        result = _RESULT.get(op, type_)
        if op == "mad" and real:
            op = "fma"
        if op in ("min", "max") and len(self.statement.operands) == 4:
            op, sources = f"{op}3", [type_] * 3
        if not real and op == "mul" and not modifiers:
            modifiers = ["lo"]
        if "wide" in modifiers:
            result = f"{type_[0]}{2 * WIDTH[type_]}"
            sources[2:] = [result] * len(sources[2:])
        if op in ("neg", "abs", "min", "max") and type_ in ("b16", "b32"):
            raise PtxError(f"line {self.statement.line}: {op} of bits")
        as_bits = op in ("and", "or", "xor", "not", "cnot", "shl", "popc", "clz", "brev", "bfi", "selp", "prmt", "shf")
        if as_bits and type_ != "pred":
            type_ = f"b{WIDTH[type_]}"
        if op == "bfi":
            result = type_
        if real and op != "copysign":  # the order in the names of the machine
            order = ("ftz", "sat", "NaN", "rz", "rm", "rp")
            modifiers = [m for m in ("NaN", *order) if m in modifiers]
            modifiers = list(dict.fromkeys(modifiers))
        if type_ in ("f16", "bf16", "f16x2", "bf16x2"):
            modifiers = [m for m in modifiers if m == "NaN"]  # subnormal numbers of 16 bits are kept
        if "xorsign" in modifiers or "relu" in modifiers:
            raise PtxError(f"line {self.statement.line}: {self.statement.op}")
        if op in ("and", "or", "xor", "not") and type_ == "pred":
            operands = self.statement.operands
            reads = [self.read(o, "pred") for o in operands[1:]]
            self._emit(f"{op}.pred", slots=[self.registers.register(operands[0]), *reads, *reads[: 2 - len(reads)]])
            return
        self._operate(".".join([op, *modifiers, type_]), result, sources)

    def _op_mov(self, modifiers: list[str], kinds: list[str]) -> None:
        to, source = self.statement.operands
        bits = WIDTH[kinds[0]]
        if to.startswith("{"):
            parts = elements(to)
            part = f"b{bits // len(parts)}"
            slot = self.read(source, f"b{bits}")
            writes = [self.write(p, part) for p in parts]
            self._emit(f"unpack.{bits}.{part[1:]}", slots=[slot, *(w for w, _ in writes)])
            for _, after in writes:
                after()
        elif source.startswith("{"):
            parts = elements(source)
            part = f"b{bits // len(parts)}"
            reads = [self.read(p, part) for p in parts]
            slot, after = self.write(to, f"b{bits}")
            self._emit(f"pack.{bits}.{part[1:]}", slots=[slot, *reads])
            after()
        elif kinds[0] == "pred":
            self._emit("mov.pred", slots=[self.registers.register(to), *[self.read(source, "pred")] * 2])
        else:
            space, address = self.symbols.get(source, ("", 0))
            type_ = f"b{bits}"
            if space in ("shared", "local") and bits == 64:  # the address in its space; cvta makes it generic
                self._emit("mov.b64", slots=[self.registers.register(to), self.registers.constant(address, 64)])
                return
            self._operate(f"mov.{type_}", type_, [type_ if kinds[0][0] != "f" else kinds[0]])

    def _op_lop3(self, modifiers: list[str], kinds: list[str]) -> None:
        *operands, table = self.statement.operands
        self.statement = Statement(self.statement.line, self.statement.op, tuple(operands), self.statement.guard)
        self._operate("lop3.b32", "b32", ["b32"] * 3, imm=int(table, 0))

    # ------------------------------------------------------------------------------------- comparison, conversion

    def _op_setp(self, modifiers: list[str], kinds: list[str]) -> None:
        comparison = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(modifiers[0], modifiers[0])
        combine = next((m for m in modifiers[1:] if m in ("and", "or", "xor")), "")
        type_ = kinds[-1]
        results, a, b, *third = self.statement.operands
        slots = [self._as_float(self.read(x, type_), type_) for x in (a, b)]
        if type_ in ("f16", "bf16"):
            type_ = "f32"
        elif type_[0] == "b":
            type_ = f"u{type_[1:]}"
        p, *q = results.split("|")
        outcome = self.registers.temporary(1)
        self._emit(f"setp.{comparison}.{type_}", slots=[outcome, *slots])
        other = self.registers.temporary(1)
        if q:
            self._emit("not.pred", slots=[other, outcome, outcome])
        if combine:
            condition = self.read(third[0], "pred")
            self._emit(f"{combine}.pred", slots=[outcome, outcome, condition])
            if q:
                self._emit(f"{combine}.pred", slots=[other, other, condition])
        if q and q[0] != "_":
            self._emit("mov.pred", slots=[self.registers.register(q[0]), other, other])
        if p != "_":
            self._emit("mov.pred", slots=[self.registers.register(p), outcome, outcome])

    def _op_testp(self, modifiers: list[str], kinds: list[str]) -> None:
        p, a = self.statement.operands
        slot = self.read(a, kinds[0])
        self._emit(f"testp.{modifiers[0]}.{kinds[0]}", slots=[self.registers.register(p), slot, slot])

    def _as_float(self, slot: int, type_: str) -> int:
        if type_ not in ("f16", "bf16"):
            return slot
        wide = self.registers.temporary(32)
        self._emit(f"cvt.f32.{type_}", slots=[wide, slot])
        return wide

    def _op_cvt(self, modifiers: list[str], kinds: list[str]) -> None:
        to, source = kinds
        rounding = next((m for m in modifiers if m in ("rni", "rzi", "rmi", "rpi")), "")
        extra = [m for m in ("ftz", "sat") if m in modifiers]
        if any(m in modifiers for m in ("rz", "rm", "rp", "relu", "satfinite")):
            raise PtxError(f"line {self.statement.line}: {self.statement.op} is not known")
        if to in ("f16x2", "bf16x2"):
            self._operate(f"cvt.{to}.f32", to, ["f32", "f32"])
            return
        operand = self.statement.operands[1]
        slot = self.read(operand, source)
        whole = [t[0] in "us" for t in (to, source)]
        if all(whole):
            if "sat" in extra:
                raise PtxError(f"line {self.statement.line}: {self.statement.op} is not known")
            target, after = self.write(self.statement.operands[0], to)
            self._emit(f"resize.{source}.{WIDTH[to]}", slots=[target, slot])
            after()
            return
        if whole[1] and WIDTH[source] < 32:  # small integers by way of 32 bits, signed or not
            slot, source = self._resized(slot, source, 32), f"{source[0]}32"
        if whole[1] and to in ("f16", "bf16"):
            slot, source = (self._resized(slot, source, 64) if WIDTH[source] < 64 else slot), "s64"
        if source in ("f16", "bf16") and to not in ("f32", "f64"):
            slot, source = self._as_float(slot, source), "f32"
        if whole[0]:
            key = f"cvt.{rounding}.{to}.{source}"
        elif rounding:
            key, extra = f"cvt.{rounding}.{to}.{source}", []
        elif whole[1] or "f16" in to or "f16" in source:
            key = f"cvt.{to}.{source}"
        else:
            key = ".".join(["cvt", *extra, to, source])
        target, after = self.write(self.statement.operands[0], to)
        self._emit(key, slots=[target, slot])
        after()

    def _op_cvta(self, modifiers: list[str], kinds: list[str]) -> None:
        space = next(m for m in modifiers if m in SPACES)
        key = (
            "mov.b64" if space in ("global", "const", "param") else f"cvta.{'to.' if 'to' in modifiers else ''}{space}"
        )
        self._operate(key, "b64", ["b64"])

    # ------------------------------------------------------------------------------------------------------ memory

    def _op_ld(self, modifiers: list[str], kinds: list[str]) -> None:
        type_ = kinds[-1]
        values = elements(self.statement.operands[0])
        _, address, offset = self._address(self.statement.operands[1])
        writes = [self.write(v, type_) for v in values]
        key = f"ld.{self._space(modifiers)}.{WIDTH[type_]}x{len(values)}"
        self._emit(key, slots=[address, *(slot for slot, _ in writes)], imm=offset)
        for _, after in writes:
            after()

    _op_ldu = _op_ld

    def _op_st(self, modifiers: list[str], kinds: list[str]) -> None:
        type_ = kinds[-1]
        values = elements(self.statement.operands[1])
        _, address, offset = self._address(self.statement.operands[0])
        slots = [self.read(v, type_) for v in values]
        self._emit(f"st.{self._space(modifiers)}.{WIDTH[type_]}x{len(values)}", slots=[address, *slots], imm=offset)

    def _op_atom(self, modifiers: list[str], kinds: list[str]) -> None:
        to, where, *operands = self.statement.operands
        type_ = kinds[-1]
        op = next(m for m in modifiers if m in ("add", "min", "max", "exch", "cas", "and", "or", "xor"))
        space = "shared" if self._space(modifiers) == "shared" else "global"
        if op in ("exch", "cas", "and", "or", "xor"):
            type_ = f"b{WIDTH[type_]}"
        _, address, offset = self._address(where)
        slots = [self.read(o, type_) for o in operands]
        target, after = self.write(to, type_)
        self._emit(f"atom.{space}.{op}.{type_}", slots=[target, address, *slots, *slots[: 2 - len(slots)]], imm=offset)
        after()

    def _op_red(self, modifiers: list[str], kinds: list[str]) -> None:
        operands = ("_", *self.statement.operands)
        self.statement = Statement(self.statement.line, self.statement.op, operands, self.statement.guard)
        self._op_atom(modifiers, kinds)

    def _op_cp(self, modifiers: list[str], kinds: list[str]) -> None:
        if modifiers[0] != "async" or "bulk" in modifiers:
            raise PtxError(f"line {self.statement.line}: {self.statement.op} is not known")
        if any(m in modifiers for m in ("commit_group", "wait_group", "wait_all")):
            return
        to, source, size, *wanted = self.statement.operands
        _, shared, shared_offset = self._address(to)
        _, address, offset = self._address(source)
        if shared_offset or offset:
            raise PtxError(f"line {self.statement.line}: cp.async with an offset is not known")
        self._emit("cp.async", slots=[shared, address, self.read((wanted or [size])[0], "u32")], imm=int(size, 0))

    def _op_createpolicy(self, modifiers: list[str], kinds: list[str]) -> None:
        slot, _ = self.write(self.statement.operands[0], "b64")
        self._emit("mov.b64", slots=[slot, self.registers.constant(0, 64)])

    # ------------------------------------------------------------------------------------------------- control flow

    def _op_label(self, modifiers: list[str], kinds: list[str]) -> None:
        self.labels[self.statement.operands[0]] = len(self.code)

    def _op_branchtargets(self, modifiers: list[str], kinds: list[str]) -> None:
        name = next(label for label, at in reversed(self.labels.items()) if at == len(self.code))
        self.tables[name] = list(self.statement.operands)

    def _op_bra(self, modifiers: list[str], kinds: list[str]) -> None:
        self._emit("", Kind.BRANCH, imm=self.statement.operands[0])

    def _op_brx(self, modifiers: list[str], kinds: list[str]) -> None:
        index, table = self.statement.operands
        self._emit("", Kind.INDIRECT, [self.read(index, "u32")], imm=table)

    def _op_ret(self, modifiers: list[str], kinds: list[str]) -> None:
        self._emit("", Kind.EXIT)

    _op_exit = _op_ret

    def _op_trap(self, modifiers: list[str], kinds: list[str]) -> None:
        self._emit("trap")

    _op_brkpt = _op_trap

    # ------------------------------------------------------------------------------------------------------- warps

    def _op_bar(self, modifiers: list[str], kinds: list[str]) -> None:
        """Slots: 1 the votes, 2 the number of threads, 3 to 5 where popc, or, and go; -1 where there is none."""
        operands = list(self.statement.operands)
        if "warp" in modifiers:
            self._warp("warpsync", mask=operands[0])
            return
        if "arrive" in modifiers:
            raise PtxError(f"line {self.statement.line}: {self.statement.op} is not known")
        slots = [-1] * 6
        slots[0] = 0
        if "red" in modifiers:
            slots[{"popc": 3, "or": 4, "and": 5}[next(m for m in modifiers if m in ("popc", "or", "and"))]] = (
                self.registers.register(operands.pop(0))
            )
            slots[1] = self.read(operands.pop(), "pred")
        if len(operands) > 1:
            slots[2] = self.read(operands[1], "u32")
        number = int(operands[0], 0) if operands else 0
        self._emit("", Kind.BARRIER, slots, imm=number)

    _op_barrier = _op_bar

    def _warp(self, key: str, *, mask: str, slots: tuple[int, ...] = ()) -> None:
        """An operation of the lanes that `mask` names."""
        padded = [*slots[:5], *(0,) * (5 - len(slots[:5])), self.read(mask, "u32"), *slots[5:]]
        self._emit(key, Kind.WARP, padded)

    def _op_shfl(self, modifiers: list[str], kinds: list[str]) -> None:
        results, a, b, c, mask = self.statement.operands
        d, *p = results.split("|")
        target, after = self.write(d, "b32")
        valid = self.registers.register(p[0]) if p and p[0] != "_" else self.scratch
        how = next(m for m in modifiers if m in ("up", "down", "bfly", "idx"))
        slots = (target, valid, self.read(a, "b32"), self.read(b, "u32"), self.read(c, "u32"))
        self._warp(f"shfl.{how}", mask=mask, slots=slots)
        after()

    def _op_vote(self, modifiers: list[str], kinds: list[str]) -> None:
        d, a, mask = self.statement.operands
        how = next(m for m in modifiers if m in ("any", "all", "uni", "ballot"))
        self._warp(f"vote.{how}", mask=mask, slots=(self.registers.register(d), 0, self.read(a, "pred")))

    def _op_redux(self, modifiers: list[str], kinds: list[str]) -> None:
        d, a, mask = self.statement.operands
        how = next(m for m in modifiers if m in ("add", "min", "max", "and", "or", "xor"))
        target, after = self.write(d, kinds[0])
        self._warp(f"redux.{how}.{kinds[0]}", mask=mask, slots=(target, 0, self.read(a, kinds[0])))
        after()

    def _op_match(self, modifiers: list[str], kinds: list[str]) -> None:
        d, a, mask = self.statement.operands
        self._warp(f"match.any.{kinds[0]}", mask=mask, slots=(self.registers.register(d), 0, self.read(a, kinds[0])))

    def _op_activemask(self, modifiers: list[str], kinds: list[str]) -> None:
        slot, after = self.write(self.statement.operands[0], "b32")
        self._emit("activemask", slots=[slot])
        after()

    def _matrix(self, op: str, modifiers: list[str], address: str, values: list[int]) -> None:
        key = ".".join(
            [op, next(m for m in modifiers if m in ("x1", "x2", "x4")), *(["trans"] * ("trans" in modifiers))]
        )
        _, base, offset = self._address(address)
        padded = [0] * 5 + [self.read("0xffffffff", "u32"), base, *values]
        self._emit(key, Kind.WARP, padded, imm=offset)

    def _op_ldmatrix(self, modifiers: list[str], kinds: list[str]) -> None:
        values, address = self.statement.operands
        self._matrix("ldmatrix", modifiers, address, [self.registers.register(v) for v in elements(values)])

    def _op_stmatrix(self, modifiers: list[str], kinds: list[str]) -> None:
        address, values = self.statement.operands
        self._matrix("stmatrix", modifiers, address, [self.read(v, "b32") for v in elements(values)])

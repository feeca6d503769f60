"""PTX text: kernels, their parameters and variables, and their statements with line numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

WIDTH = {  # bits of a type
    **{f"{kind}{bits}": bits for kind in "bus" for bits in (8, 16, 32, 64)},
    "f16": 16,
    "bf16": 16,
    "f32": 32,
    "f64": 64,
    "f16x2": 32,
    "bf16x2": 32,
    "f32x2": 64,
    "pred": 1,
}

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_NEWLINE_DIRECTIVE = re.compile(r"\s*\.(version|target|address_size|loc|file|section)\b")
_VARIABLE = re.compile(
    r"\.(global|const|shared|local|param)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?"
    r"([\w$%.]+)\s*(?:\[(\d*)\])?\s*(?:=\s*(.*))?$",
    re.DOTALL,
)
_HEADER = re.compile(r"\.(entry|func)\s*(?:\(([^)]*)\)\s*)?([\w$.]+)\s*(?:\((.*?)\))?", re.DOTALL)
_TARGET = re.compile(r"\.target\s+sm_(\d+)")
_LIMIT = re.compile(r"\.(maxntid|reqntid|minnctapersm|maxnreg|reqnctapercluster)\s+(\d+(?:\s*,\s*\d+)*)")


class PtxError(Exception):
    """PTX that this emulator cannot read or does not know."""


@dataclass(frozen=True)
class Variable:
    """A parameter, or memory in a state space; size in bytes, 0 for dynamic shared memory."""

    space: str
    name: str
    size: int
    align: int
    initial: tuple[int, ...] = ()


@dataclass(frozen=True)
class Statement:
    """`@[!]guard op operands`, or a label (`op` is "label")."""

    line: int
    op: str
    operands: tuple[str, ...]
    guard: str = ""

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        return f"{guard}{self.op} {', '.join(self.operands)}".strip()


@dataclass
class Function:
    name: str
    is_kernel: bool
    parameters: list[Variable]
    results: list[Variable]
    text: str  # of the body
    line: int  # on which it begins
    limits: dict[str, tuple[int, ...]] = field(default_factory=dict)  # .maxntid and the like
    registers: dict[str, int] = field(default_factory=dict)  # name: bits
    variables: list[Variable] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)

    def parsed(self) -> Function:
        if not self.statements:
            for line, text in _statements(self.text, self.line):
                self._take(line, text)
        return self

    def _take(self, line: int, text: str) -> None:
        if text.startswith(".reg"):
            self._registers(text)
        elif text.startswith(".branchtargets"):
            targets = tuple(t.strip() for t in text.removeprefix(".branchtargets").split(","))
            self.statements.append(Statement(line, "branchtargets", targets))
        elif text.startswith((".shared", ".local", ".param")):
            self.variables.append(variable(text))
        elif text.startswith("."):
            pass  # .pragma and the like say nothing about what is computed
        elif text.endswith(":"):
            self.statements.append(Statement(line, "label", (text[:-1],)))
        else:
            match = re.match(r"(?:@(!?[%\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", text, re.DOTALL)
            if not match:
                raise PtxError(f"line {line}: cannot read {text!r}")
            guard, op, rest = match.groups()
            self.statements.append(Statement(line, op.replace("::", "_"), tuple(split(rest)), guard or ""))

    def _registers(self, text: str) -> None:
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", text, re.DOTALL).groups()
        for name in names.split(","):
            many = re.match(r"\s*([%\w$]+)<(\d+)>", name)
            each = [f"{many[1]}{n}" for n in range(int(many[2]))] if many else [name.strip()]
            for register in each:
                # a register of 8 bits does not exist in hardware and behaves as one of 16
                if self.registers.setdefault(register, max(WIDTH[kind], 16) if kind != "pred" else 1) != (
                    max(WIDTH[kind], 16) if kind != "pred" else 1
                ):
                    raise PtxError(f"register {register} is declared twice, with two widths")


@dataclass
class Module:
    functions: dict[str, Function]
    variables: list[Variable]
    lines: list[str]
    architecture: int = 0  # of its target, 90 for sm_90a

    def kernel(self, name: str | None = None) -> Function:
        """The kernel of that name, or the only one."""
        kernels = [f for f in self.functions.values() if f.is_kernel and name in (None, f.name)]
        if len(kernels) != 1:
            raise PtxError(f"{len(kernels)} kernels named {name}")
        return kernels[0].parsed()


def parse(text: str) -> Module:
    """The functions and variables of a module; bodies are read when they are wanted."""
    code = _COMMENT.sub(lambda m: "\n" * m[0].count("\n"), text)
    functions: dict[str, Function] = {}
    variables = []
    for line, head, body, body_line in _top_level(code):
        header = _HEADER.search(head)
        if header:
            kind, results, name, parameters = header.groups()
            if body is not None:
                functions[name] = Function(
                    name,
                    kind == "entry",
                    _list(parameters),
                    _list(results),
                    body,
                    body_line,
                    _limits(head[header.end() :]),
                )
        elif _VARIABLE.search(head):
            variables.append(variable(head))
        elif not re.match(r"\.(alias|visible|extern|weak|pragma)", head):
            raise PtxError(f"line {line}: cannot read {head[:80]!r}")
    target = _TARGET.search(code)
    return Module(functions, variables, text.splitlines(), int(target[1]) if target else 0)


def variable(text: str) -> Variable:
    match = _VARIABLE.search(text)
    if not match:
        raise PtxError(f"cannot read the declaration {text!r}")
    space, align, kind, name, count, initial = match.groups()
    element = WIDTH[kind] // 8
    size = element * (int(count or 0) if count is not None else 1)
    values = tuple(int(v, 0) for v in re.findall(r"-?\b(?:0x[0-9a-fA-F]+|\d+)\b", initial or ""))
    data = b"".join((v & (1 << 8 * element) - 1).to_bytes(element, "little") for v in values)
    return Variable(space, name, size, int(align or element), tuple(data))


def split(operands: str) -> Iterator[str]:
    """At the commas that are in no brackets."""
    depth, start = 0, 0
    for i, c in enumerate(operands):
        depth += (c in "[{(") - (c in ")}]")
        if c == "," and depth == 0:
            yield operands[start:i].strip()
            start = i + 1
    if operands[start:].strip():
        yield operands[start:].strip()


def _list(parameters: str | None) -> list[Variable]:
    return [variable(p) for p in split(parameters)] if parameters and parameters.strip() else []


def _limits(directives: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(map(int, numbers.split(","))) for name, numbers in _LIMIT.findall(directives)}


def _top_level(code: str) -> Iterator[tuple[int, str, str | None, int]]:
    """(line, text before the body or semicolon, body or None, the body's line) of each declaration of a module."""
    at, line = 0, 1
    stop = re.compile(r"[;{]")
    while True:
        skip = re.compile(r"\s*").match(code, at).end()
        line += code.count("\n", at, skip)
        at = skip
        if at >= len(code):
            return
        section = re.compile(r"\.section\s+\S+\s*\{").match(code, at)
        if section:
            end = _closing(code, section.end()) + 1
            line += code.count("\n", at, end)
            at = end
            continue
        if _NEWLINE_DIRECTIVE.match(code, at):
            at = code.find("\n", at) % (len(code) + 1)
            continue
        found = stop.search(code, at)
        if not found:
            return
        end = found.start()
        head = code[at:end]
        if found[0] == "{" and "=" not in head:
            close = _closing(code, end + 1)
            yield line, head, code[end + 1 : close], line + code.count("\n", at, end)
            end = close
        else:
            end = code.index(";", end)
            yield line, code[at:end].strip(), None, 0
        line += code.count("\n", at, end + 1)
        at = end + 1


def _closing(code: str, start: int) -> int:
    depth = 1
    for brace in re.compile(r"[{}]").finditer(code, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise PtxError("a brace is not closed")


_LABEL = re.compile(r"([$\w%.]+):(?!:)\s*")


def _statements(body: str, line: int) -> Iterator[tuple[int, str]]:
    """(line, text without semicolon) of each statement; a label ends in a colon. Scopes are taken as open."""
    pending, began = "", line
    for number, row in enumerate(body.split("\n"), line):
        if (not pending and _NEWLINE_DIRECTIVE.match(row)) or re.match(r"\s*\.loc\b", row):
            continue
        if not pending:
            began = number
        pending = f"{pending} {row.strip()}".strip()
        while pending:
            if pending[0] in "{}":
                pending = pending[1:].strip()
            elif (label := _LABEL.match(pending)) and not pending.startswith("@"):
                yield began, f"{label[1]}:"
                pending = pending[label.end() :]
            elif ";" in pending:
                text, pending = pending.split(";", 1)
                yield began, text.strip()
                pending = pending.strip()
            else:
                break
            began = number
    if pending.strip():
        raise PtxError(f"line {began}: {pending!r} has no end")

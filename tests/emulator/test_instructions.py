"""The machine of the emulator, instruction by instruction, against numpy."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from numpy.typing import DTypeLike

from tests.emulator import build, ptx
from tests.emulator.snippet import compute

pytestmark = pytest.mark.skipif(shutil.which(build.CXX) is None, reason=f"needs {build.CXX}")

N = 64  # two warps
EDGES = {32: [0, 1, 2, -1, -2, 31, 32, 33, 2**31 - 1, -(2**31)], 64: [0, 1, -1, 63, 64, 2**31, 2**63 - 1, -(2**63)]}
TYPES = {"s16": np.int16, "u16": np.uint16, "s32": np.int32, "u32": np.uint32, "s64": np.int64, "u64": np.uint64}
FLOATS = {"f32": np.float32, "f64": np.float64}


def integers(kind: str, seed: int) -> np.ndarray:
    """Random numbers of all magnitudes, and the edges of the range."""
    dtype = np.dtype(TYPES[kind])
    bits = 8 * dtype.itemsize
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**bits, N, dtype=np.uint64) >> rng.integers(0, bits, N).astype(np.uint64)
    edges = EDGES.get(bits, [0, 1, -1, 2**15 - 1, -(2**15)])
    values[: len(edges)] = np.array([e & (2**bits - 1) for e in edges], np.uint64)
    rng.shuffle(values)
    return values.astype(f"u{dtype.itemsize}").view(dtype)


def floats(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(N) * 10.0 ** rng.integers(-6, 7, N)
    values[:8] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 1.0]
    return rng.permutation(values).astype(FLOATS[kind])


def exact(*values: np.ndarray) -> list[list[int]]:
    return [[int(v) for v in array] for array in values]


def wrapped(values: list[int], dtype: DTypeLike) -> np.ndarray:
    bits = 8 * np.dtype(dtype).itemsize
    return np.array([v & (2**bits - 1) for v in values], f"u{bits // 8}").view(dtype)


def truncated(a: int, b: int) -> int:
    """a / b as C has it."""
    return 0 if b == 0 else (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)


BINARY = {
    "add": lambda a, b, _: a + b,
    "sub": lambda a, b, _: a - b,
    "mul.lo": lambda a, b, _: a * b,
    "mul.hi": lambda a, b, bits: (a * b) >> bits,
    "div": lambda a, b, _: truncated(a, b),
    "rem": lambda a, b, _: a - truncated(a, b) * b,
    "min": lambda a, b, _: min(a, b),
    "max": lambda a, b, _: max(a, b),
}


# ----------------------------------------------------------------------------------------------------------- integers


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("op", BINARY)
def test_integer_arithmetic(op, kind):
    a, b = integers(kind, 1), integers(kind, 2)
    if op in ("div", "rem"):
        b[b == 0] = 3  # not defined
    bits = 8 * a.itemsize
    expected = [BINARY[op](x, y, bits) for x, y in zip(*exact(a, b), strict=True)]
    assert np.array_equal(compute(f"{op}.{kind} %d, %a, %b;", a.dtype, a, b), wrapped(expected, a.dtype))


@pytest.mark.parametrize("kind", ["s32", "u32", "s16", "u16"])
def test_widening(kind):
    a, b = integers(kind, 1), integers(kind, 2)
    wide = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{2 * a.itemsize}")
    expected = a.astype(wide) * b.astype(wide)
    assert np.array_equal(compute(f"mul.wide.{kind} %d, %a, %b;", wide, a, b), expected)
    c = integers({4: "s64", 2: "s32"}[a.itemsize], 3).view(wide)
    with np.errstate(over="ignore"):
        assert np.array_equal(compute(f"mad.wide.{kind} %d, %a, %b, %c;", wide, a, b, c), expected + c)


@pytest.mark.parametrize("kind", ["s32", "u64"])
def test_multiply_and_add(kind):
    a, b, c = (integers(kind, n) for n in range(3))
    expected = [x * y + z for x, y, z in zip(*exact(a, b, c), strict=True)]
    assert np.array_equal(compute(f"mad.lo.{kind} %d, %a, %b, %c;", a.dtype, a, b, c), wrapped(expected, a.dtype))


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic_and_shifts(bits):
    signed, unsigned = f"s{bits}", f"u{bits}"
    a, b = integers(unsigned, 1), integers(unsigned, 2)
    n = np.random.default_rng(3).integers(0, bits + 8, N).astype(np.uint32)
    for op, expected in (("and", a & b), ("or", a | b), ("xor", a ^ b)):
        assert np.array_equal(compute(f"{op}.b{bits} %d, %a, %b;", a.dtype, a, b), expected)
    assert np.array_equal(compute(f"not.b{bits} %d, %a;", a.dtype, a), ~a)
    pairs = list(zip(*exact(a, n), strict=True))
    assert np.array_equal(
        compute(f"shl.b{bits} %d, %a, %b;", a.dtype, a, n), wrapped([x << y for x, y in pairs], a.dtype)
    )
    assert np.array_equal(
        compute(f"shr.u{bits} %d, %a, %b;", a.dtype, a, n), wrapped([x >> y for x, y in pairs], a.dtype)
    )
    s = integers(signed, 1)
    expected = [x >> y for x, y in zip(*exact(s, n), strict=True)]
    assert np.array_equal(compute(f"shr.{signed} %d, %a, %b;", s.dtype, s, n), wrapped(expected, s.dtype))


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_counts(bits):
    a = integers(f"u{bits}", 1)
    values = exact(a)[0]
    for op, expected in (
        ("popc.b", [bin(v).count("1") for v in values]),
        ("clz.b", [bits - v.bit_length() for v in values]),
        ("bfind.u", [(v.bit_length() - 1) & 0xFFFFFFFF for v in values]),
    ):
        assert compute(f"{op}{bits} %d, %a;", np.uint32, a).tolist() == expected
    expected = [int(f"{v:0{bits}b}"[::-1], 2) for v in values]
    assert compute(f"brev.b{bits} %d, %a;", a.dtype, a).tolist() == expected


def test_bit_fields():
    a, b = integers("u32", 1), integers("u32", 2)
    rng = np.random.default_rng(3)
    first, count = (rng.integers(0, 40, N).astype(np.uint32) for _ in range(2))
    expected = [x >> f & ((1 << c) - 1) for x, f, c in zip(*exact(a, first, count), strict=True)]
    assert compute("bfe.u32 %d, %a, %b, %c;", np.uint32, a, first, count).tolist() == expected
    signed = []
    for x, f, c in zip(*exact(a, first, count), strict=True):
        field = (x - 2**32 if x >> 31 else x) >> min(f, 31) & ((1 << c) - 1)
        top = c and (x >> min(f + c - 1, 31) & 1)
        signed.append((field - (1 << c) if top else field) & 0xFFFFFFFF)
    assert compute("bfe.s32 %d, %a, %b, %c;", np.uint32, a, first, count).tolist() == signed
    inserted = compute("mov.u32 %r1, %t; and.b32 %r1, %r1, 31; bfi.b32 %d, %a, %b, %c, %r1;", np.uint32, a, b, first)
    counts = [t & 31 for t in range(N)]
    expected = [
        (y & ~(((1 << c) - 1) << f) | (x & ((1 << c) - 1)) << f) & 0xFFFFFFFF
        for x, y, f, c in zip(*exact(a, b, first), counts, strict=True)
    ]
    assert inserted.tolist() == expected


def test_permutations_and_tables():
    a, b, c = (integers("u32", n) for n in range(3))
    table = 0b10010110
    expected = []
    for x, y, z in zip(*exact(a, b, c), strict=True):
        bits = [table >> ((x >> i & 1) * 4 + (y >> i & 1) * 2 + (z >> i & 1)) & 1 for i in range(32)]
        expected.append(sum(bit << i for i, bit in enumerate(bits)))
    assert compute(f"lop3.b32 %d, %a, %b, %c, {table};", np.uint32, a, b, c).tolist() == expected
    selector = 0x7B10  # bytes 0, 1, the sign of byte 3, byte 7
    taken = compute(f"prmt.b32 %d, %a, %b, {selector};", np.uint32, a, b)
    sign = np.where(a >> 31 == 1, 255, 0).astype(np.uint32)
    assert np.array_equal(taken, (a & 0xFFFF) | sign << 16 | (b >> 24) << 24)
    n = np.random.default_rng(3).integers(0, 40, N).astype(np.uint32)
    both = [y << 32 | x for x, y in zip(*exact(a, b), strict=True)]
    expected = [v << (k & 31) >> 32 & 0xFFFFFFFF for v, k in zip(both, exact(n)[0], strict=True)]
    assert compute("shf.l.wrap.b32 %d, %a, %b, %c;", np.uint32, a, b, n).tolist() == expected
    expected = [v >> min(k, 32) & 0xFFFFFFFF for v, k in zip(both, exact(n)[0], strict=True)]
    assert compute("shf.r.clamp.b32 %d, %a, %b, %c;", np.uint32, a, b, n).tolist() == expected


# ----------------------------------------------------------------------------------------------------- floating point


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a[a == 0]), np.signbit(b[b == 0]))


@pytest.mark.parametrize("kind", FLOATS)
def test_floating_arithmetic(kind):
    a, b, c = (floats(kind, n) for n in range(3))
    with np.errstate(all="ignore"):
        for op, expected in (
            ("add", a + b),
            ("sub", a - b),
            ("mul", a * b),
            ("div.rn", a / b),
            ("min", np.fmin(a, b)),
            ("max", np.fmax(a, b)),
        ):
            result = compute(f"{op}.{kind} %d, %a, %b;", a.dtype, a, b)
            zeros = op in ("min", "max")  # numpy does not order them
            assert same(result + 0 if zeros else result, expected + 0 if zeros else expected), op
        for op, expected in (("neg", -a), ("abs", abs(a)), ("sqrt.rn", np.sqrt(a)), ("rcp.rn", 1 / a)):
            assert same(compute(f"{op}.{kind} %d, %a;", a.dtype, a), expected), op
        fma = torch.addcmul(*(torch.from_numpy(x).double() for x in (c, a, b))).numpy()
        result = compute(f"fma.rn.{kind} %d, %a, %b, %c;", a.dtype, a, b, c)
        assert np.allclose(result, fma.astype(a.dtype), rtol=2 * np.finfo(a.dtype).eps, equal_nan=True)


def test_fused_multiply_add_rounds_once():
    a = np.full(N, 1 + 2.0**-12, np.float32)
    c = np.full(N, -1 - 2.0**-11, np.float32)
    assert np.all(compute("fma.rn.f32 %d, %a, %b, %c;", np.float32, a, a, c) == np.float32(2.0**-24))


@pytest.mark.parametrize(("mode", "better"), [("rm", np.less_equal), ("rp", np.greater_equal)])
def test_directed_rounding(mode, better):
    a, b = (np.random.default_rng(n).standard_normal(N).astype(np.float32) for n in range(2))
    true = a.astype(np.float64) * b
    result = compute(f"mul.{mode}.f32 %d, %a, %b;", np.float32, a, b)
    assert np.all(better(result, true)) and np.all(abs(result - true) < abs(true) * 2.0**-23)
    nearest = compute("mul.rn.f32 %d, %a, %b;", np.float32, a, b)
    assert np.array_equal(nearest, a * b) and not np.array_equal(nearest, result)


def test_modifiers():
    a = np.array([1e-40, -1e-40, 0.5, 2, -3, np.nan, np.inf, 1e-30] * 8, np.float32)
    zero = np.zeros(N, np.float32)
    assert same(
        compute("add.ftz.f32 %d, %a, %b;", np.float32, a, zero), np.where(abs(a) < 1e-38, 0, a).astype(np.float32)
    )
    assert same(compute("add.sat.f32 %d, %a, %b;", np.float32, a, zero), np.nan_to_num(np.clip(a, 0, 1), nan=0.0))
    assert np.all(np.isnan(compute("max.NaN.f32 %d, %a, %b;", np.float32, a, zero)) == np.isnan(a))


def test_approximate_functions():
    a = np.random.default_rng(0).uniform(0.01, 20, N).astype(np.float32)
    for op, function in (
        ("ex2.approx.ftz", np.exp2),
        ("lg2.approx", np.log2),
        ("rsqrt.approx", lambda x: 1 / np.sqrt(x)),
        ("sin.approx", np.sin),
        ("cos.approx", np.cos),
        ("tanh.approx", np.tanh),
    ):
        assert np.allclose(compute(f"{op}.f32 %d, %a;", np.float32, a), function(a.astype(np.float64)), rtol=1e-6), op


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_sixteen_bits(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(N, generator=generator).to(dtype) for _ in range(3))
    bits = [x.view(torch.int16).numpy() for x in (a, b, c)]

    def result(snippet: str, *inputs: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(compute(snippet, np.int16, *inputs)).view(dtype)

    assert torch.equal(result(f"add.{kind} %d, %a, %b;", *bits[:2]), a + b)
    assert torch.equal(result(f"mul.{kind} %d, %a, %b;", *bits[:2]), a * b)
    fused = (a.double() * b.double() + c.double()).to(torch.float64)
    assert torch.equal(result(f"fma.rn.{kind} %d, %a, %b, %c;", *bits), fused.to(dtype))
    assert torch.equal(result(f"max.{kind} %d, %a, %b;", *bits[:2]), torch.maximum(a, b))
    x2 = [np.ascontiguousarray(np.repeat(x, 2)).view(np.int32) for x in bits]
    pairs = compute(f"fma.rn.{kind}x2 %d, %a, %b, %c;", np.int32, *x2).view(np.int16)
    assert torch.equal(torch.from_numpy(pairs[::2].copy()).view(dtype), fused.to(dtype))


def test_pairs_of_floats():
    a, b = (np.random.default_rng(n).standard_normal(2 * N).astype(np.float32) for n in range(2))
    result = compute("add.f32x2 %d, %a, %b;", np.uint64, a.view(np.uint64), b.view(np.uint64))
    assert np.array_equal(result.view(np.float32), a + b)


# -------------------------------------------------------------------------------------------------------- conversions


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("to", ["s8", "u8", "s16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize(
    ("mode", "rounding"), [("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)]
)
def test_to_integer(kind, to, mode, rounding):
    a = floats(kind, 1)
    bits, signed = int(to[1:]), to[0] == "s"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    expected = [
        0 if math.isnan(v) else low if v <= low else high if v >= high else int(rounding(v)) for v in a.tolist()
    ]
    result = compute(f"cvt.{mode}.{to}.{kind} %d, %a;", np.int64 if bits == 64 else np.int32, a)
    size = np.int64 if bits == 64 else np.int32
    assert np.array_equal(result, wrapped(expected, size)), (result, expected)


@pytest.mark.parametrize("source", ["s32", "u32", "s64", "u64", "s16", "u16"])
@pytest.mark.parametrize("kind", FLOATS)
def test_from_integer(kind, source):
    a = integers(source, 1)
    assert np.array_equal(compute(f"cvt.rn.{kind}.{source} %d, %a;", FLOATS[kind], a), a.astype(FLOATS[kind]))


def test_between_floats():
    a = floats("f64", 1)
    with np.errstate(all="ignore"):
        assert same(compute("cvt.rn.f32.f64 %d, %a;", np.float32, a), a.astype(np.float32))
        b = floats("f32", 1)
        assert same(compute("cvt.f64.f32 %d, %a;", np.float64, b), b.astype(np.float64))
        assert same(compute("cvt.rmi.f32.f32 %d, %a;", np.float32, b), np.floor(b))
    for kind, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        expected = torch.from_numpy(b).to(dtype)
        result = torch.from_numpy(compute(f"cvt.rn.{kind}.f32 %d, %a;", np.int16, b)).view(dtype)
        assert torch.equal(result[~expected.isnan()], expected[~expected.isnan()])
        back = compute(f"cvt.f32.{kind} %d, %a;", np.float32, expected.view(torch.int16).numpy())
        assert same(back, expected.float().numpy())
        two = compute(f"cvt.rn.{kind}x2.f32 %d, %a, %b;", np.int32, b, np.ones_like(b)).view(np.int16)
        assert torch.equal(
            torch.from_numpy(two[1::2].copy()).view(dtype)[~expected.isnan()], expected[~expected.isnan()]
        )


def test_sizes_of_integers():
    a = integers("s32", 1)
    assert np.array_equal(compute("cvt.s64.s32 %d, %a;", np.int64, a), a.astype(np.int64))
    assert np.array_equal(compute("cvt.u64.u32 %d, %a;", np.int64, a), a.view(np.uint32).astype(np.int64))
    assert np.array_equal(compute("cvt.s32.s8 %d, %a;", np.int32, a), a.astype(np.int8).astype(np.int32))
    assert np.array_equal(
        compute("cvt.u16.u32 %h1, %a; cvt.u32.u16 %d, %h1;", np.uint32, a), a.view(np.uint32) & 0xFFFF
    )


def test_packing():
    a, b = integers("u32", 1), integers("u32", 2)
    both = compute("mov.b64 %d, {%a, %b};", np.uint64, a, b)
    assert np.array_equal(both, a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32))
    assert np.array_equal(compute("mov.b64 {_, %d}, %a;", np.uint32, both), b)
    assert np.array_equal(compute("mov.b32 {%h1, %h2}, %a; mov.b32 %d, {%h2, %h1};", np.uint32, a), a >> 16 | a << 16)


# --------------------------------------------------------------------------------------------------------- predicates

COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u16", "f32", "f64"])
@pytest.mark.parametrize("comparison", COMPARE)
def test_comparison(kind, comparison):
    make = floats if kind in FLOATS else integers
    a, b = make(kind, 1), make(kind, 2)
    b[::3] = a[::3]
    expected = eval(f"a {COMPARE[comparison]} b")
    unordered = np.isnan(a) | np.isnan(b) if kind in FLOATS else np.zeros(N, bool)
    snippet = "setp.{}.{} %p1, %a, %b; selp.u32 %d, 1, 0, %p1;"
    assert np.array_equal(compute(snippet.format(comparison, kind), np.uint32, a, b), expected & ~unordered)
    if kind in FLOATS:
        assert np.array_equal(compute(snippet.format(comparison + "u", kind), np.uint32, a, b), expected | unordered)
        assert np.array_equal(compute(snippet.format("nan", kind), np.uint32, a, b), unordered)


def test_combined_comparison():
    a, b = integers("s32", 1), integers("s32", 2)
    snippet = """setp.gt.s32 %p1, %b, 0; setp.lt.and.s32 %p2|%p3, %a, %b, %p1;
    selp.u32 %r1, 1, 0, %p2; selp.u32 %r2, 2, 0, %p3; or.b32 %d, %r1, %r2;"""
    assert np.array_equal(compute(snippet, np.uint32, a, b), ((a < b) & (b > 0)) + 2 * ((a >= b) & (b > 0)))


def test_predicate_logic_and_guards():
    a, b = integers("s32", 1), integers("s32", 2)
    snippet = """setp.lt.s32 %p1, %a, 0; setp.lt.s32 %p2, %b, 0; xor.pred %p3, %p1, %p2; and.pred %p4, %p3, !%p1;
    mov.b32 %d, 5; @%p3 mov.b32 %d, 6; @!%p3 add.s32 %d, %d, 10; @%p4 mov.b32 %d, 7;"""
    x, y = a < 0, b < 0
    assert np.array_equal(compute(snippet, np.int32, a, b), np.where((x ^ y) & ~x, 7, np.where(x ^ y, 6, 15)))


# ------------------------------------------------------------------------------------------------------------- memory

SHARED = ".extern .shared .align 16 .b8 scratch[];"


def test_vectors():
    a = integers("u32", 1)
    snippet = """ld.param.u64 %rd1, [p0]; and.b32 %r1, %t, 15; mad.wide.u32 %rd1, %r1, 16, %rd1;
    ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd1];
    add.u32 %r2, %r2, %r3; add.u32 %r4, %r4, %r5; add.u32 %d, %r2, %r4;"""
    assert np.array_equal(compute(snippet, np.uint32, a), np.tile(a.reshape(16, 4).sum(1, dtype=np.uint32), 4))


def test_narrow_loads_extend():
    a = integers("u32", 1)
    snippet = "ld.param.u64 %rd1, [p0]; mad.wide.u32 %rd1, %t, 4, %rd1; ld.global.{} %r1, [%rd1+1]; mov.b32 %d, %r1;"
    assert np.array_equal(compute(snippet.format("s8"), np.int32, a), (a >> 8).astype(np.int8).astype(np.int32))
    assert np.array_equal(compute(snippet.format("u8"), np.uint32, a), a >> 8 & 255)


def test_shared_memory():
    a = integers("u32", 1)
    snippet = """mov.u32 %r1, scratch; shl.b32 %r2, %t, 2; add.u32 %r3, %r1, %r2; st.shared.b32 [%r3], %a; bar.sync 0;
    sub.u32 %r4, 252, %r2; add.u32 %r4, %r1, %r4; ld.shared.b32 %d, [%r4];"""
    for seed in range(4):
        assert np.array_equal(compute(snippet, np.uint32, a, shared=256, declarations=SHARED, seed=seed), a[::-1])


def test_generic_addresses():
    a = integers("u32", 1)
    snippet = """mov.u64 %rd1, scratch; cvta.shared.u64 %rd1, %rd1; mad.wide.u32 %rd1, %t, 4, %rd1; st.b32 [%rd1], %a;
    cvta.to.shared.u64 %rd2, %rd1; ld.shared.b32 %d, [%rd2];"""
    assert np.array_equal(compute(snippet, np.uint32, a, shared=256, declarations=SHARED), a)


def test_local_memory():
    a = integers("u32", 1)
    snippet = """.local .align 8 .b8 stack[16]; mov.u64 %rd1, stack; st.local.b32 [%rd1+4], %a;
    cvta.local.u64 %rd2, %rd1; ld.b32 %d, [%rd2+4];"""
    assert np.array_equal(compute(snippet, np.uint32, a), a)


def test_constant_variables():
    a = integers("u32", 1)
    constants = ".const .align 4 .b32 table[4] = {10, 0x20, 30, 40};"
    snippet = "and.b32 %r1, %t, 3; mov.u64 %rd1, table; mad.wide.u32 %rd1, %r1, 4, %rd1; ld.const.u32 %d, [%rd1];"
    assert compute(snippet, np.uint32, a, declarations=constants).tolist() == [10, 32, 30, 40] * 16


def test_atomics():
    zero = np.zeros(N, np.uint32)
    snippet = """mov.u32 %r1, scratch; setp.eq.u32 %p1, %t, 0; @%p1 st.shared.b32 [%r1], %a; bar.sync 0;
    atom.shared.add.u32 %r2, [%r1], 3; bar.sync 0; ld.shared.b32 %d, [%r1];"""
    assert np.all(compute(snippet, np.uint32, zero, shared=16, declarations=SHARED) == 3 * N)


def test_asynchronous_copy():
    a = integers("u32", 1)
    snippet = """ld.param.u64 %rd1, [p0]; mad.wide.u32 %rd1, %t, 4, %rd1; mov.u32 %r1, scratch; shl.b32 %r2, %t, 4;
    add.u32 %r1, %r1, %r2; and.b32 %r3, %t, 1; shl.b32 %r3, %r3, 2; cp.async.ca.shared.global [%r1], [%rd1], 4, %r3;
    cp.async.commit_group; cp.async.wait_group 0; ld.shared.b32 %d, [%r1];"""
    expected = np.where(np.arange(N) % 2, a, 0)
    assert np.array_equal(compute(snippet, np.uint32, a, shared=16 * N, declarations=SHARED), expected)


# --------------------------------------------------------------------------------------------------------------- warps


def test_shuffles():
    a = integers("u32", 1)
    lane, warp = np.arange(N) % 32, np.arange(N) // 32 * 32
    for op, source in (
        ("bfly.b32 %d, %a, 5, 31, -1", lane ^ 5),
        ("down.b32 %d, %a, 3, 31, -1", np.where(lane + 3 < 32, lane + 3, lane)),
        ("up.b32 %d, %a, 3, 0, -1", np.where(lane >= 3, lane - 3, lane)),
        ("idx.b32 %d, %a, 7, 31, -1", 0 * lane + 7),
        ("down.b32 %d, %a, 1, 6175, -1", np.where(lane % 8 < 7, lane + 1, lane)),  # in segments of 8: 0x181f
    ):
        assert np.array_equal(compute(f"shfl.sync.{op};", np.uint32, a), a[warp + source]), op
    valid = compute("shfl.sync.down.b32 %r1|%p1, %a, 4, 31, -1; selp.u32 %d, 1, 0, %p1;", np.uint32, a)
    assert np.array_equal(valid, lane < 28)


def test_votes_and_reductions():
    a = integers("s32", 1)
    groups = a.reshape(2, 32)
    test = "setp.gt.s32 %p1, %a, 0; "
    ballot = compute(test + "vote.sync.ballot.b32 %d, %p1, -1;", np.uint32, a)
    assert ballot.tolist() == np.repeat([sum(int(v > 0) << n for n, v in enumerate(g)) for g in groups], 32).tolist()
    some = compute(test + "vote.sync.any.pred %p2, %p1, -1; selp.u32 %d, 1, 0, %p2;", np.uint32, a)
    assert np.array_equal(some, np.repeat((groups > 0).any(1), 32))
    assert np.array_equal(compute("redux.sync.max.s32 %d, %a, -1;", np.int32, a), np.repeat(groups.max(1), 32))
    total = compute("redux.sync.add.s32 %d, %a, -1;", np.int32, a)
    assert np.array_equal(total, np.repeat(groups.sum(1, dtype=np.int32), 32))
    small = (a & 3).astype(np.uint32)
    same_value = [sum(int(v == w) << n for n, w in enumerate(g)) for g in small.reshape(2, 32) for v in g]
    assert compute("match.any.sync.b32 %d, %a, -1;", np.uint32, small).tolist() == same_value


def test_matrices_go_to_memory_and_back():
    a = integers("u32", 1)[:32]
    snippet = """mov.u32 %r1, scratch; shl.b32 %r2, %t, 4; and.b32 %r2, %r2, 127; add.u32 %r1, %r1, %r2;
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r1], {%a}; bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%d}, [%r1];"""
    matrix = a.view(np.uint16).reshape(8, 8)
    result = compute(snippet, np.uint32, a, shared=128, declarations=SHARED)
    assert np.array_equal(result.view(np.uint16).reshape(8, 8), matrix.T)


def test_barrier_with_a_count():
    a = integers("s32", 1)
    snippet = "setp.gt.s32 %p1, %a, 0; barrier.red.popc.aligned.u32 %d, 0, %p1;"
    assert np.all(compute(snippet, np.uint32, a) == (a > 0).sum())


# ------------------------------------------------------------------------------------------------------- control flow


def test_loops_of_different_length():
    """Collatz: every lane takes its own number of steps, and all come together for the shuffle."""
    a = np.arange(1, N + 1, dtype=np.uint32)
    snippet = """mov.b32 %r1, %a; mov.b32 %r2, 0;
    LOOP: setp.eq.u32 %p1, %r1, 1; @%p1 bra END; add.u32 %r2, %r2, 1; and.b32 %r3, %r1, 1; setp.eq.u32 %p2, %r3, 0;
    @%p2 bra EVEN; mad.lo.u32 %r1, %r1, 3, 1; bra LOOP;
    EVEN: shr.u32 %r1, %r1, 1; bra LOOP;
    END: shfl.sync.idx.b32 %r4, %r2, 26, 31, -1; mad.lo.u32 %d, %r4, 1000, %r2;"""

    def steps(n: int) -> int:
        return 0 if n == 1 else 1 + steps(n // 2 if n % 2 == 0 else 3 * n + 1)

    own = np.array([steps(int(n)) for n in a])
    for seed in range(3):
        assert np.array_equal(
            compute(snippet, np.uint32, a, seed=seed), own + 1000 * own.reshape(2, 32)[:, 26].repeat(32)
        )


def test_jump_tables():
    a = integers("u32", 1) % 3
    snippet = """brx.idx %a, TABLE;
    TABLE: .branchtargets ONE, TWO, THREE;
    ONE: mov.b32 %d, 1; bra END;
    TWO: mov.b32 %d, 2; bra END;
    THREE: mov.b32 %d, 3;
    END:"""
    assert np.array_equal(compute(snippet, np.uint32, a), a + 1)


def test_threads_and_blocks():
    a = np.zeros(96, np.uint32)
    snippet = """mov.u32 %r1, %ctaid.x; mov.u32 %r2, %laneid; mov.u32 %r3, %nctaid.x;
    mad.lo.u32 %d, %r1, 100, %r2; mad.lo.u32 %d, %r3, 1000, %d;"""
    expected = [3000 + 100 * block + lane for block in range(3) for lane in range(32)]
    for seed in range(3):
        assert compute(snippet, np.uint32, a, blocks=3, seed=seed).tolist() == expected


def test_unknown_instructions_are_named():
    a = np.zeros(32, np.uint32)
    with pytest.raises(ptx.PtxError, match=r"line \d+: .*wgmma"):
        compute("wgmma.fence.sync.aligned;", np.uint32, a)

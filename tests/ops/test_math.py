"""The elementary functions of csrc/math, compiled alone: their largest error in units of the last place (ULP).

A range of float32 is tried at its ends and at about half a million bit patterns, evenly spread; rounding on both sides
of every number at which it changes, too. Each function is compiled twice, as in the library: for the baseline, and for
the level that the machine chooses at run time, which contracts multiplications with additions.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.emulator import build

CSRC = Path(__file__).resolve().parents[2] / "csrc"
LEVELS = ("baseline", "best")
EXPONENTS = {"half": 0.5, "10": 10}
HARNESS = r"""
#include <cstdint>

#include "cpu/common/levels.h"
#include "math/convert.h"
#include "math/exp.h"
#include "math/log.h"
#include "math/power.h"

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

extern "C" int contracts() { return wilson::cpu_level() != "baseline"; }

#define APPLY(NAME, LEVEL, TO, EXPRESSION)                                        \
  extern "C" LEVEL void NAME(const float* from, TO* to, int64_t count) {          \
    for (int64_t i = 0; i < count; ++i) { const float x = from[i]; to[i] = EXPRESSION; } \
  }
#define ON_BOTH(NAME, TO, EXPRESSION)                   \
  APPLY(NAME##_baseline, , TO, EXPRESSION)              \
  APPLY(NAME##_best, WILSON_CPU_LEVELS, TO, EXPRESSION)

ON_BOTH(exp, float, wilson::exp_nonpositive(x))
ON_BOTH(log1p, float, wilson::log1p_nonnegative(x))
ON_BOTH(power_half, float, wilson::power_of_share(x, 0.5f))
ON_BOTH(power_10, float, wilson::power_of_share(x, 10.f))
ON_BOTH(bfloat16, uint16_t, wilson::round_to<BFloat16>(x).x)
ON_BOTH(float16, uint16_t, wilson::round_to<Half>(x).x)
APPLY(torch_bfloat16, , uint16_t, BFloat16(x).x)
APPLY(torch_float16, , uint16_t, Half(x).x)
"""


@functools.cache
def library() -> ctypes.CDLL:
    if shutil.which(build.CXX) is None:
        pytest.skip(f"{build.CXX} is not installed")
    command = [
        build.CXX, "-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp-simd", f"-I{CSRC}",
        f"-I{Path(torch.__file__).parent / 'include'}",
    ]  # fmt: skip
    headers = [CSRC / "cpu" / "common" / "levels.h", *sorted((CSRC / "math").glob("*.h"))]
    key = build.key_of([*command, build.compiler(), torch.__version__, HARNESS, *(h.read_text() for h in headers)])

    def make(folder: Path) -> None:
        (folder / "harness.cpp").write_text(HARNESS)
        build.run([*command, folder / "harness.cpp", "-o", folder / "harness.so"])

    return ctypes.CDLL(str(build.cached(f"math-{key}", make) / "harness.so"))


def apply(name: str, x: np.ndarray, dtype: type) -> np.ndarray:
    result: np.ndarray = np.empty(x.shape, dtype)
    getattr(library(), name)(
        x.ctypes.data_as(ctypes.c_void_p), result.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(x.size)
    )
    return result


def floats(first: float, last: float) -> np.ndarray:
    """Floats from first to last, both of one sign: the 64 at either end, and every n-th between them."""
    low, high = sorted(int(np.float32(end).view(np.uint32)) for end in (first, last))
    step = max(1, (high - low) >> 19) | 1  # odd, so that every combination of low bits comes
    ends = [np.arange(low, min(low + 64, high + 1)), np.arange(max(high - 63, low), high + 1)]
    return np.concatenate([np.arange(low, high + 1, step), *ends]).astype(np.uint32).view(np.float32)


def ulps(got: np.ndarray, exact: np.ndarray) -> float:
    """The largest error, in steps between the float32 around the exact results."""
    return float((np.abs(got - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


# The bounds are the largest errors of all floats of the range, rounded up: without contraction and with it. Rounding
# x log2(e) costs digits of the result, which a fused operation keeps.
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("first", "last", "bounds"),
    [(-0.0, -1.0, (1.8, 1.2)), (-1.0, -8.0, (7.7, 2.4)), (-8.0, -87.0, (63.8, 20.0)), (0.0, 0.5, (1.4, 1.1))],
)
def test_exp_nonpositive(level: str, first: float, last: float, bounds: tuple[float, float]) -> None:
    x = floats(first, last)
    bound = bounds[level == "best" and library().contracts()]
    assert ulps(apply(f"exp_{level}", x, np.float32), np.exp(x.astype(np.float64))) <= bound


@pytest.mark.parametrize("level", LEVELS)
def test_exp_nonpositive_at_its_ends(level: str) -> None:
    below = floats(np.nextafter(np.float32(-87), np.float32(-88)), -np.inf)
    assert not apply(f"exp_{level}", below, np.float32).any()
    x = np.array([0.0, -0.0, np.nan], np.float32)
    np.testing.assert_array_equal(apply(f"exp_{level}", x, np.float32), [1, 1, np.nan])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("first", "last", "bound"), [(0.0, 1.0, 3.1), (1.0, 1e38, 1.8)])
def test_log1p_nonnegative(level: str, first: float, last: float, bound: float) -> None:
    x = floats(first, last)
    assert ulps(apply(f"log1p_{level}", x, np.float32), np.log1p(x.astype(np.float64))) <= bound


@pytest.mark.parametrize("level", LEVELS)
def test_log1p_nonnegative_of_nan(level: str) -> None:
    assert np.isnan(apply(f"log1p_{level}", np.array([np.nan], np.float32), np.float32)).all()


# The errors of log x, times the exponent, and of exp_nonpositive: little beside 1, if many ULP of a small power.
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("exponent", "first", "bounds"),
    [("half", 0.25, (1.6, 1.4)), ("half", 3e-4, (7.6, 5.7)), ("10", 0.75, (11.3, 9.3)), ("10", 3e-4, (274, 239))],
)
def test_power_of_share(level: str, exponent: str, first: float, bounds: tuple[float, float]) -> None:
    x = floats(first, 1.0)
    bound = bounds[level == "best" and library().contracts()]
    got, exact = apply(f"power_{exponent}_{level}", x, np.float32), x.astype(np.float64) ** EXPONENTS[exponent]
    assert ulps(got, exact) <= bound
    assert np.abs(got - exact).max() <= 1.8 * 2**-24


@pytest.mark.parametrize("level", LEVELS)
def test_power_of_share_at_its_ends(level: str) -> None:
    x = np.array([0.0, -0.0, -1e-7, -0.5, 1.0], np.float32)
    for exponent in EXPONENTS:
        np.testing.assert_array_equal(apply(f"power_{exponent}_{level}", x, np.float32), [0, 0, 0, 0, 1])


def borders(dtype: torch.dtype) -> np.ndarray:
    """The float32 around every number of dtype and around every middle between two neighbours, of both signs."""
    patterns = torch.arange(0x8000, dtype=torch.int32).to(torch.int16).view(dtype).double()
    values = patterns[patterns.isfinite()].numpy()
    last = values[-1] + (values[-1] - values[-2])  # where infinity would be
    values = np.append(values, last)
    at = np.concatenate([values, (values[1:] + values[:-1]) / 2])
    with np.errstate(over="ignore"):  # the last of bfloat16 is infinity
        at = at.astype(np.float32).view(np.uint32).astype(np.int64)
    around = np.unique(at[:, None] + np.arange(-2, 3)).clip(0, 0x7F800000).astype(np.uint32)
    return np.concatenate([around, around | np.uint32(0x80000000)]).view(np.float32)


def nans() -> np.ndarray:
    """NaN of both signs: the first, the quiet and the last ones."""
    patterns = np.array([0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF], np.uint32)
    return np.concatenate([patterns, patterns | np.uint32(0x80000000)]).view(np.float32)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_round_to(level: str, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    x = np.concatenate([borders(dtype), floats(0.0, np.inf), floats(-0.0, -np.inf), nans()])
    got = apply(f"{name}_{level}", x, np.uint16)
    np.testing.assert_array_equal(
        got, apply(f"torch_{name}", x, np.uint16)
    )  # NaN, too, has the bits of torch's scalars
    number = ~np.isnan(x)
    expected = torch.from_numpy(x[number]).to(dtype).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(got[number], expected)

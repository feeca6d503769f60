"""Instructions are counted by the unit that executes them, and bytes by the width of their accesses."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.emulator import build
from tests.emulator.snippet import launch
from tests.emulator.units import Unit, unit

pytestmark = pytest.mark.skipif(shutil.which(build.CXX) is None, reason=f"needs {build.CXX}")

# Each thread adds 2^x of its number to itself, a second time in the odd lanes
LOOP = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry k(.param .u64 numbers)
{
.reg .pred %p<2>; .reg .b32 %r<4>; .reg .b64 %rd<3>; .reg .f32 %f<3>;
mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [numbers]; mad.wide.u32 %rd2, %r1, 4, %rd1;
ld.global.f32 %f1, [%rd2]; and.b32 %r2, %r1, 1;
AGAIN: ex2.approx.f32 %f2, %f1; add.f32 %f1, %f1, %f2;
setp.ne.s32 %p1, %r2, 0; mov.u32 %r2, 0;
@%p1 bra AGAIN;
st.global.f32 [%rd2], %f1; ret;
}
"""


def test_counts_by_unit():
    launched = launch(LOOP, (1,), (192,), torch.zeros(192))
    warps = 6
    assert launched.executed[Unit.INTEGER] == warps * (2 + 2)  # the address, the lane; the comparison, twice
    assert launched.executed[Unit.FLOAT] == warps * 2
    assert launched.executed[Unit.SPECIAL] == warps * 2
    assert launched.executed[Unit.MEMORY] == warps * 2
    assert launched.executed[Unit.CONTROL] == warps * (2 + 1)


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("div.rn.f32", Unit.SPECIAL),
        ("div.s32", Unit.INTEGER),
        ("cvt.rn.bf16.f32", Unit.INTEGER),
        ("setp.lt.f32", Unit.FLOAT),
        ("fma.rn.bf16x2", Unit.FLOAT),
        ("add.cc.u32", Unit.INTEGER),
        ("ld.shared.v4.b32", Unit.MEMORY),
        ("shfl.sync.bfly.b32", Unit.MEMORY),
        ("bar.sync", Unit.CONTROL),
        ("ld.param.u64", Unit.NONE),
    ],
)
def test_unit(op, expected):
    assert unit(op) == expected


def test_wide_bytes():
    """Each thread adds up four numbers and stores the sum in their first place."""
    head = LOOP.partition("mov.u32 %r1")[0]
    add_up = """mov.u32 %r1, %tid.x; ld.param.u64 %rd1, [numbers]; mad.wide.u32 %rd2, %r1, 16, %rd1;
    .reg .f32 %g<4>; ld.global.v4.f32 {%g0, %g1, %g2, %g3}, [%rd2];
    add.f32 %f1, %g0, %g1; add.f32 %f1, %f1, %g2; add.f32 %f1, %f1, %g3; st.global.f32 [%rd2], %f1; ret; }"""
    numbers = torch.ones(4 * 64)
    launched = launch(head + add_up, (1,), (64,), numbers)
    assert numbers.view(64, 4)[:, 0].tolist() == [4.0] * 64
    assert (launched.load_bytes, launched.store_bytes, launched.wide) == (16 * 64, 4 * 64, 16 * 64)

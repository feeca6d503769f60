"""The emulator sees what is wrong: faults planted in small kernels, in real Triton kernels and in real CUDA kernels."""

from __future__ import annotations

import importlib.util
import re
import shutil

import pytest
import torch

from tests.emulator import build, kernel, ptx
from tests.emulator.kernel import Fault, KernelError
from tests.emulator.snippet import launch

pytestmark = pytest.mark.skipif(shutil.which(build.CXX) is None, reason=f"needs {build.CXX}")

# Turns the elements of each block around, through shared memory
REVERSE = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry reverse(.param .u64 source, .param .u64 target, .param .u32 n)
{
  .reg .pred %p<4>; .reg .b32 %r<16>; .reg .b64 %rd<8>;
  .shared .align 4 .b8 tile[512];
  ld.param.u64 %rd1, [source]; ld.param.u64 %rd2, [target]; ld.param.u32 %r1, [n];
  mov.u32 %r2, %tid.x; mov.u32 %r3, %ctaid.x; shl.b32 %r4, %r3, 7; add.u32 %r4, %r4, %r2;
  mov.u32 %r9, 0;
  setp.lt.u32 %p1, %r4, %r1;                       // inside
  mad.wide.u32 %rd3, %r4, 4, %rd1; mad.wide.u32 %rd4, %r4, 4, %rd2;
  @%p1 ld.global.u32 %r9, [%rd3];
  mov.u32 %r5, tile; shl.b32 %r6, %r2, 2; add.u32 %r7, %r5, %r6;
  st.shared.u32 [%r7], %r9;
  bar.sync 0;
  sub.u32 %r8, 508, %r6; add.u32 %r8, %r5, %r8;
  ld.shared.u32 %r10, [%r8];
  @%p1 st.global.u32 [%rd4], %r10;
  ret;
}
"""


def run(text: str, *, n: int = 200, blocks: int = 2, threads: int = 128, seed: int = 0) -> torch.Tensor:
    source, target = torch.arange(n, dtype=torch.int32), torch.zeros(n, dtype=torch.int32)
    launch(text, (blocks,), (threads,), source, target, n, seed=seed)
    return target


def faults(*args, **kwargs) -> list[Fault]:
    with pytest.raises(KernelError) as caught:
        run(*args, **kwargs)
    assert re.search(r"block \(\d+, \d+, \d+\), thread \d+, PTX line \d+: \S", str(caught.value))
    return caught.value.faults


def line_of(error: KernelError, text: str) -> str:
    number = int(re.findall(r"PTX line (\d+)", str(error))[0])
    return text.splitlines()[number - 1]


@pytest.mark.parametrize("seed", range(4))
def test_what_is_right_passes(seed):
    padded = torch.zeros(256, dtype=torch.int32)
    padded[:200] = torch.arange(200)
    assert torch.equal(run(REVERSE, seed=seed), padded.view(2, 128).flip(1).flatten()[:200])


def test_removed_mask():
    without = REVERSE.replace("@%p1 ld.global", "ld.global")
    with pytest.raises(KernelError, match="outside of every tensor") as caught:
        run(without)
    assert "ld.global.u32" in line_of(caught.value, without)
    assert faults(REVERSE.replace("@%p1 st.global", "st.global")) == [Fault.OUT_OF_BOUNDS]


def test_removed_barrier():
    assert Fault.SHARED_RACE in faults(REVERSE.replace("bar.sync 0;", ""), seed=1)
    # and in order, where the last warps' values are not there yet
    assert Fault.SHARED_UNINITIALISED in faults(REVERSE.replace("bar.sync 0;", ""))


def test_launch_that_is_off_by_one():
    unmasked = REVERSE.replace("@%p1 ", "")
    run(unmasked, n=256)
    assert Fault.OUT_OF_BOUNDS in faults(unmasked, n=256, blocks=3)
    assert Fault.OUT_OF_BOUNDS in faults(unmasked, n=255)


def test_too_small_a_launch_leaves_its_mark():
    """Nothing is wrong with the accesses, but the output holds what nobody wrote."""
    with kernel.session() as session:
        output = torch.empty(200, dtype=torch.float32)
        source = torch.arange(200, dtype=torch.int32)
        session.memory.add(source, writable=False)
        module = kernel.Kernel(ptx.parse(REVERSE))
        pointers = [tensor.data_ptr().to_bytes(8, "little") for tensor in (source, output)]
        module.launch(session, (1,), (128,), [*pointers, (200).to_bytes(4, "little")])
    assert not output[:128].isnan().any() and output[128:].isnan().all()


def test_race_between_blocks():
    everyone_writes_the_same = REVERSE.replace("shl.b32 %r4, %r3, 7;", "mov.u32 %r4, 0;")
    assert faults(everyone_writes_the_same) == [Fault.BLOCK_RACE]


def test_block_that_reads_what_another_wrote():
    next_block = """ld.global.u32 %r9, [%rd4+512];
    """
    # blocks read the target of the block after them, which may or may not be there yet
    reads = REVERSE.replace("ret;", f"setp.eq.u32 %p2, %r3, 0; @%p2 {next_block} ret;")
    for seed in range(4):
        assert faults(reads, n=256, seed=seed) == [Fault.BLOCK_RACE]


def test_misaligned():
    assert faults(REVERSE.replace("[%rd3]", "[%rd3+2]"), n=256) == [Fault.MISALIGNED]
    assert Fault.SHARED_MISALIGNED in faults(REVERSE.replace("[%r7]", "[%r7+1]"))


def test_vector_load_of_an_odd_row():
    vector = REVERSE.replace("@%p1 ld.global.u32 %r9, [%rd3];", "ld.global.v2.u32 {%r9, %r11}, [%rd3];")
    assert Fault.MISALIGNED in faults(vector, n=256)


def test_outside_of_shared_memory():
    assert Fault.SHARED_OUT_OF_BOUNDS in faults(REVERSE.replace("sub.u32 %r8, 508", "sub.u32 %r8, 512"))


def test_uninitialised():
    with kernel.session() as session:
        source, target = torch.empty(128, dtype=torch.int32), torch.empty(128, dtype=torch.int32)
        session.memory.add(source[:100])
        arguments = [source.data_ptr().to_bytes(8, "little"), target.data_ptr().to_bytes(8, "little"), b"\x80"]
        with pytest.raises(KernelError) as caught:
            kernel.Kernel(ptx.parse(REVERSE)).launch(session, (1,), (128,), arguments)
    assert caught.value.faults == [Fault.UNINITIALISED]


def test_between_the_rows_of_a_slice():
    """A view's neighbours in the same storage are none of the kernel's business."""
    whole = torch.zeros(300, dtype=torch.int32)
    target = torch.zeros(200, dtype=torch.int32)
    launch(REVERSE, (2,), (128,), whole[50:250], target, 200)
    with pytest.raises(KernelError, match="outside of every tensor"):
        launch(REVERSE, (2,), (128,), whole[50:249], target, 200)


def test_store_into_an_input():
    with kernel.session() as session:
        source = torch.zeros(128, dtype=torch.int32)
        session.memory.add(source, writable=False)
        pointer = source.data_ptr().to_bytes(8, "little")
        with pytest.raises(KernelError) as caught:
            kernel.Kernel(ptx.parse(REVERSE)).launch(session, (1,), (128,), [pointer, pointer, b"\x80"])
    assert caught.value.faults == [Fault.READ_ONLY]


def test_barrier_that_some_never_reach():
    left = REVERSE.replace("bar.sync 0;", "setp.ge.u32 %p3, %r2, 96; @%p3 ret; bar.sync 0;")
    assert Fault.EXITED in faults(left)
    half_a_warp = REVERSE.replace("bar.sync 0;", "setp.ge.u32 %p3, %r2, 16; @%p3 bra AFTER; bar.sync 0; AFTER:")
    assert Fault.DEADLOCK in faults(half_a_warp) or Fault.EXITED in faults(half_a_warp)
    two_barriers = REVERSE.replace("bar.sync 0;", "setp.ge.u32 %p3, %r2, 64; @%p3 bar.sync 1; @!%p3 bar.sync 2;")
    assert Fault.DEADLOCK in faults(two_barriers)


def test_divergent_warp_operation():
    parted = REVERSE.replace(
        "bar.sync 0;",
        "and.b32 %r12, %r2, 1; setp.eq.u32 %p3, %r12, 0; @%p3 bra ODD; shfl.sync.bfly.b32 %r13, %r9, 1, 31, -1; "
        "bra AFTER; ODD: shfl.sync.bfly.b32 %r13, %r9, 1, 31, -1; AFTER: bar.sync 0;",
    )
    assert Fault.DIVERGENT in faults(parted)
    named = parted.replace("31, -1; bra", "31, 0xaaaaaaaa; bra").replace("31, -1; AFTER", "31, 0x55555555; AFTER")
    # each half names itself alone, but asks the other half for a value
    assert Fault.DIVERGENT in faults(named)
    run(named.replace("%r9, 1, 31", "%r9, 2, 31"))  # its own half: nothing is wrong


def test_exited_lanes():
    left = REVERSE.replace(
        "bar.sync 0;", "setp.eq.u32 %p3, %r2, 5; @%p3 ret; shfl.sync.bfly.b32 %r13, %r9, 1, 31, -1; bar.sync 0;"
    )
    assert Fault.EXITED in faults(left)


def test_endless(monkeypatch):
    monkeypatch.setattr(kernel, "ENDLESS", 100_000)
    assert faults(REVERSE.replace("bar.sync 0;", "AGAIN: bra AGAIN;")) == [Fault.ENDLESS]


def test_trap():
    assert faults(REVERSE.replace("bar.sync 0;", "trap;")) == [Fault.TRAP]


def test_counts():
    source, target = torch.arange(200, dtype=torch.int32), torch.zeros(200, dtype=torch.int32)
    result = launch(REVERSE, (2,), (128,), source, target, 200)
    assert (result.load_bytes, result.store_bytes) == (800, 800)
    assert (result.distinct_loaded, result.distinct_stored) == (800, 800) and result.barriers == 2
    twice = REVERSE.replace("@%p1 ld.global.u32 %r9, [%rd3];", "@%p1 ld.global.u32 %r9, [%rd3];" * 2)
    result = launch(twice, (2,), (128,), source, target, 200)
    assert (result.load_bytes, result.distinct_loaded) == (1600, 800)


# ------------------------------------------------------------------------------------------------- the project's own


def pooling(provider: str, change, **options) -> None:
    """Pools with kernels whose PTX is changed before it runs."""
    from tests.emulator import ops as emulated_ops
    from tests.support import cases
    from wilson import ops

    real = ptx.parse

    def changed(text: str) -> ptx.Module:
        new = change(text)
        assert new != text, "nothing was planted"
        return real(new)

    scores = cases.Draw("faults", cases.Shape(2, 21, 9, 11), torch.float32).scores()
    with pytest.MonkeyPatch.context() as patch, emulated_ops.emulated(provider, "pooling", **options) as session:
        patch.setattr(ptx, "parse", changed)
        if provider == "triton":
            from wilson.kernels import pooling as launchers

            for jit in (launchers._ngwp_focal_pool_fwd_kernel, launchers._ngwp_focal_pool_finish_kernel):
                jit.device_caches.clear()
        else:
            from tests.emulator import cuda_ops

            library = cuda_ops.library("pooling", 90)
            text = "\n".join(library._module.lines)
            patch.setattr(library, "_module", changed(text))
            patch.setattr(library, "_kernels", {})
        try:
            ops.ngwp_focal_pool(scores)
        finally:
            if provider == "triton":
                for jit in (launchers._ngwp_focal_pool_fwd_kernel, launchers._ngwp_focal_pool_finish_kernel):
                    jit.device_caches.clear()
    assert session.launches


def _have(provider: str) -> bool:
    if provider == "triton":
        return all(importlib.util.find_spec(name) for name in ("triton", "wilson.kernels"))
    from tests.emulator import cuda_ops

    try:
        return bool(cuda_ops.nvcc())
    except build.BuildError:
        return False


@pytest.mark.parametrize("provider", ["triton", "cuda"])
def test_planted_in_a_real_kernel(provider):
    if not _have(provider):
        pytest.skip(f"no {provider} here")
    barriers = re.compile(r"bar\.sync\s+0;")
    with pytest.raises(KernelError) as caught:
        pooling(provider, lambda text: barriers.sub("", text))
    assert {Fault.SHARED_RACE, Fault.SHARED_UNINITIALISED} & set(caught.value.faults)
    loads = re.compile(r"@%p\d+ ?\s*(ld\.global)")  # Triton's masks are predicates, nvcc's are branches
    branches = re.compile(r"@%p\d+ bra [^\n]*\n(?=(?:(?!\$L)[^\n]*\n){0,12}?[^\n]*ld\.global)")
    masks = (lambda text: loads.sub(r"\1", text)) if provider == "triton" else (lambda text: branches.sub("\n", text))
    with pytest.raises(KernelError) as caught:
        pooling(provider, masks)
    assert {Fault.OUT_OF_BOUNDS, Fault.MISALIGNED} & set(caught.value.faults)

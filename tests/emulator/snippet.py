"""Small kernels written by hand: a few lines of PTX that every thread runs on its own element of some arrays."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import torch

from . import kernel, ptx

# Registers that a snippet may use besides %a, %b, ... (the elements of the inputs), %d (the result) and %t (the thread)
_REGISTERS = """
.reg .pred %p<8>; .reg .b16 %h<16>; .reg .b32 %r<32>; .reg .b64 %rd<32>; .reg .f32 %f<16>; .reg .f64 %fd<16>;
.reg .u32 %t; .reg .u64 %at;
"""


def module(snippet: str, inputs: Sequence[int], output: int, declarations: str = "") -> str:
    """A kernel `k` of pointers to the inputs and the output, whose elements have so many bytes."""
    names = [f"%{chr(ord('a') + n)}" for n in range(len(inputs))]
    sizes = [*inputs, output]
    parameters = ", ".join(f".param .u64 p{n}" for n in range(len(sizes)))
    registers = "".join(f".reg .b{8 * size} {name};" for name, size in zip([*names, "%d"], sizes, strict=False))

    def locate(n: int) -> str:
        return f"ld.param.u64 %at, [p{n}]; mad.wide.u32 %at, %t, {sizes[n]}, %at;"

    loads = "\n".join(f"{locate(n)} ld.global.b{8 * sizes[n]} {name}, [%at];" for n, name in enumerate(names))
    return f"""
.version 8.0
.target sm_90
.address_size 64
{declarations}
.visible .entry k({parameters})
{{
{_REGISTERS} {registers}
.reg .u32 %block; .reg .u32 %size;
mov.u32 %t, %tid.x; mov.u32 %block, %ctaid.x; mov.u32 %size, %ntid.x;
mad.lo.u32 %t, %block, %size, %t;
{loads}
{snippet}
{locate(len(inputs))}
st.global.b{8 * output} [%at], %d;
ret;
}}
"""


def compute(
    snippet: str,
    result: np.dtype | type,
    *arrays: np.ndarray,
    threads: int | None = None,
    blocks: int = 1,
    shared: int = 0,
    declarations: str = "",
    seed: int = 0,
) -> np.ndarray:
    """%d of every thread. Inputs have one element per thread."""
    threads = threads or len(arrays[0]) // blocks
    result = np.dtype(result)
    text = module(snippet, [a.itemsize for a in arrays], result.itemsize, declarations)
    with kernel.session(seed) as session:
        inputs = [torch.from_numpy(np.ascontiguousarray(a).view(np.uint8)) for a in arrays]
        output = torch.zeros(blocks * threads * result.itemsize, dtype=torch.uint8)
        for tensor in inputs:
            session.memory.add(tensor, writable=False)
        session.memory.add(output)
        pointers = [struct.pack("<Q", tensor.data_ptr()) for tensor in (*inputs, output)]
        kernel.Kernel(ptx.parse(text), "k").launch(session, (blocks,), (threads,), pointers, shared)
    return output.numpy().view(result)


def launch(
    text: str, grid: Sequence[int], block: Sequence[int], *arguments: torch.Tensor | int, shared: int = 0, seed: int = 0
) -> kernel.Launch:
    """Run the only kernel of a module on tensors, taken as initialised, and integers of 32 bits."""
    with kernel.session(seed) as session:
        packed = []
        for value in arguments:
            if isinstance(value, torch.Tensor):
                session.memory.add(value)
                packed.append(struct.pack("<Q", value.data_ptr()))
            else:
                packed.append(struct.pack("<i", value))
        return kernel.Kernel(ptx.parse(text)).launch(session, grid, block, packed, shared)

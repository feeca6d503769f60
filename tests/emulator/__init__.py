"""GPU kernels executed on the CPU: a machine for PTX, the code that NVIDIA's compilers emit.

- `ptx`, `operands`, `decode`, `program`: PTX text to a list of instructions for the machine.
- `units`: the unit of a multiprocessor that executes an instruction, by which they are counted.
- `machine/`: the machine, in C++: lanes, warps, barriers, shared memory; global memory is checked byte by byte.
- `memory`: which tensors there are, and what is known of their bytes.
- `kernel`: a kernel, its launches, what they moved, and the faults that they are refused for.
- `triton_driver`: Triton kernels launched with CPU tensors run their compiled PTX.
- `cuda_ops`, `cudart.cpp`: the project's .cu files, host launchers included, over a stand-in for the CUDA runtime.
- `ops`: the public ops of the project with those kernels behind them.
- `traffic`: launches, bytes and instructions of every op; bytes against the least possible.
- `snippet`, `check`: what the tests are written with.

Kernels are not compiled for the CPU one by one: their instructions are looked up in a table and run for 32 lanes at a
time, so that a kernel starts at once. What is compiled (the machine, the .cu files) stays in the user's cache.

What it does not do: function calls, tensor cores, TMA, clusters; asynchronous copies are done at once; approximate
functions of the hardware are computed exactly. It says nothing about speed.
"""

#pragma once

// What was built, as JSON: version, compiler, cpu_levels built, cpu_level in use, cuda_architectures (empty: no CUDA
// library), cuda (the toolkit's version, or why there is none), torch built against, torch_target (the oldest torch it
// loads in), debug.
extern "C" __attribute__((visibility("default"))) const char* wilson_build_info();

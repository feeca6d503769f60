// The Python module wilson._C: what was built. The kernels are in a library without Python, which torch loads.
#include <pybind11/pybind11.h>

#include "build_info.h"

PYBIND11_MODULE(_C, module) {
  module.doc() = "What was built: the compiled kernels of wilson.ops are in _C_cpu.so and _C_cuda.so.";
  module.def(
      "build_info", [] { return pybind11::module_::import("json").attr("loads")(wilson_build_info()); },
      "Return what was built: version, compiler, cpu_levels built, cpu_level in use, cuda_architectures (empty: no "
      "CUDA library), cuda (the toolkit's version, or why there is none), torch built against, torch_target (the "
      "oldest torch it loads in), debug.");
}

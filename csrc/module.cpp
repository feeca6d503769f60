// The Python module wilson._C: what was built. The kernels register themselves with torch when the module is loaded.
// No header of torch's stable ABI is included here, as it does not compile together with torch's pybind11.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "build_info.h"
#include "cpu/common/levels.h"

namespace py = pybind11;

namespace {

#if defined(__clang__)
const std::string kCompiler = "clang " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__);
#else
const std::string kCompiler = "gcc " __VERSION__;
#endif

#if defined(NDEBUG)
constexpr bool kDebug = false;
#else
constexpr bool kDebug = true;
#endif

// CMake's "80-real;90-real;100" is 80, 90, 100+PTX.
std::vector<std::string> cuda_architectures() {
  std::vector<std::string> names;
  std::istringstream list(WILSON_CUDA_ARCHITECTURES);
  for (std::string name; std::getline(list, name, ';');) {
    const auto dash = name.find('-');
    if (dash == std::string::npos) {
      name += "+PTX";
    } else if (name.substr(dash) == "-real") {
      name.resize(dash);
    }
    names.push_back(name);
  }
  return names;
}

py::dict build_info() {
  py::dict info;
  info["version"] = WILSON_VERSION;
  info["compiler"] = kCompiler;
  info["cpu_levels"] = wilson::cpu_levels();
  info["cpu_level"] = wilson::cpu_level();
  info["cuda_architectures"] = cuda_architectures();
  info["cuda"] = WILSON_CUDA_TEXT;
  info["torch"] = WILSON_TORCH_VERSION;
  info["torch_target"] = WILSON_TORCH_TARGET;
  info["debug"] = kDebug;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled kernels of wilson.ops; importing it registers them.";
  module.def(
      "build_info", &build_info,
      "Return what was built: version, compiler, cpu_levels built, cpu_level in use, cuda_architectures (empty: no "
      "CUDA library), cuda (the toolkit's version, or why there is none), torch built against, torch_target (the "
      "oldest torch it loads in), debug.");
}

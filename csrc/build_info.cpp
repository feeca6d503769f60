// What was built, as JSON: for the CPU library, which every Python can ask by ctypes, and for the module wilson._C.
// No header of torch's stable ABI is included here, as it does not compile together with torch's pybind11.
#include "build_info.h"

#include <sstream>
#include <string>
#include <vector>

#include "build_values.h"
#include "cpu/common/levels.h"

namespace {

#if defined(__clang__)
const std::string kCompiler = "clang " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__);
#else
const std::string kCompiler = "gcc " __VERSION__;
#endif

#if defined(NDEBUG)
constexpr const char* kDebug = "false";
#else
constexpr const char* kDebug = "true";
#endif

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;  // a compiler's reason may hold tabs
  }
  return out + '"';
}

std::string quoted(const std::vector<std::string>& words) {
  std::string out;
  for (const auto& word : words) out += (out.empty() ? "" : ", ") + quoted(word);
  return "[" + out + "]";
}

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

}  // namespace

const char* wilson_build_info() {
  static const std::string info =
      "{\"version\": " + quoted(WILSON_VERSION) + ", \"compiler\": " + quoted(kCompiler) +
      ", \"cpu_levels\": " + quoted(wilson::cpu_levels()) + ", \"cpu_level\": " + quoted(wilson::cpu_level()) +
      ", \"cuda_architectures\": " + quoted(cuda_architectures()) + ", \"cuda\": " + quoted(WILSON_CUDA_TEXT) +
      ", \"torch\": " + quoted(WILSON_TORCH_VERSION) + ", \"torch_target\": " + quoted(WILSON_TORCH_TARGET) +
      ", \"debug\": " + kDebug + "}";
  return info.c_str();
}

// A stand-in for the CUDA runtime, linked into each emulated library: it remembers the names of the kernels and hands
// every launch to a callback. It also stands in for what torch does with devices and streams, and registers the ops of
// the library for a dispatch key that nothing else uses, so that those of a real GPU stay as they are.
//
// What a launcher must do is checked at every launch: use the current stream, within a device guard, and look for
// errors afterwards. Shared memory that it asks for is granted to the next launch alone: each might be the first.
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_map>

namespace {

struct Size {
  unsigned x, y, z;
};
struct Configuration {
  Size grid, block;
  size_t shared;
  void* stream;
};

using LaunchKernel = int (*)(const char* name, const unsigned* grid, const unsigned* block, size_t shared,
                             int64_t asked, const char* wrong, void** args);

LaunchKernel launch_kernel = nullptr;
thread_local Configuration configuration;
thread_local int last_error = 0;
thread_local int guards = 0;       // that live now
thread_local bool checked = true;  // whether somebody asked for the error of the last launch
thread_local int64_t asked = -1;   // bytes of shared memory for a launch of `asking`
thread_local const void* asking = nullptr;
void* const kStream = &launch_kernel;         // the current one, which is not the default
constexpr int kNoKernel = 98, kFailed = 719;  // numbers of the CUDA runtime

std::unordered_map<const void*, std::string>& kernels() {
  static std::unordered_map<const void*, std::string> all;
  return all;
}

int launch(const void* function, Size grid, Size block, void** args, size_t shared, void* stream) {
  const auto kernel = kernels().find(function);
  if (kernel == kernels().end() || !launch_kernel) return last_error = kNoKernel;
  const unsigned g[] = {grid.x, grid.y, grid.z}, b[] = {block.x, block.y, block.z};
  const char* wrong = stream != kStream ? "it is not on the current stream"
                      : guards == 0     ? "no device guard makes the tensors' device the current one"
                      : !checked        ? "nobody looked for an error after the launch before"
                                        : "";
  const int64_t granted = asking == function ? asked : -1;
  asking = nullptr;
  checked = false;
  if (launch_kernel(kernel->second.c_str(), g, b, shared, granted, wrong, args)) last_error = kFailed;
  return last_error;
}

}  // namespace

extern "C" {

void emulator_on_launch(LaunchKernel callback) { launch_kernel = callback; }

// Whether the error of the last launch was looked for; then all is as at the start.
int emulator_checked() {
  const bool was = checked;
  checked = true;
  last_error = 0;
  return was;
}

// What nvcc's code calls

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
  kernels()[function] = name;
}
unsigned __cudaPushCallConfiguration(Size grid, Size block, size_t shared, void* stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}
int __cudaPopCallConfiguration(Size* grid, Size* block, size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return 0;
}
int __cudaGetKernel(void** kernel, const void* function) {
  *kernel = const_cast<void*>(function);
  return 0;
}
int __cudaLaunchKernel(void* kernel, Size grid, Size block, void** args, size_t shared, void* stream) {
  return launch(kernel, grid, block, args, shared, stream);
}
int cudaLaunchKernel(const void* function, Size grid, Size block, void** args, size_t shared, void* stream) {
  return launch(function, grid, block, args, shared, stream);
}
int cudaFuncSetAttribute(const void* function, int attribute, int value) {
  constexpr int kMaxDynamicSharedMemorySize = 8;
  if (attribute != kMaxDynamicSharedMemorySize) return 1;
  asking = function;
  asked = value;
  return 0;
}
int cudaGetLastError() {
  const int error = last_error;
  last_error = 0;
  checked = true;
  return error;
}
int cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorString(int error) { return error ? "emulated CUDA error" : "no error"; }

// What torch's stable interface does with a CUDA device

int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = kStream;
  return 0;
}
int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = &guards;  // not null, which nobody would delete
  ++guards;
  return 0;
}
int32_t aoti_torch_delete_device_guard(void*) {
  --guards;
  return 0;
}
int32_t torch_c10_cuda_check_msg(int32_t error, const char* file, const char*, uint32_t line, bool, char** message) {
  if (error) {
    const std::string text = std::string(cudaGetErrorString(error)) + " " + std::to_string(error) + " at " + file +
                             ":" + std::to_string(line);
    *message = strdup(text.c_str());
  }
  return 0;
}
void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }

int32_t aoti_torch_library_init_impl(const char* space, const char*, const char* file, uint32_t line, void** library) {
  using Init = int32_t (*)(const char*, const char*, const char*, uint32_t, void**);
  const auto real = reinterpret_cast<Init>(dlsym(RTLD_NEXT, "aoti_torch_library_init_impl"));
  return real(space, EMULATED_KEY, file, line, library);
}
}

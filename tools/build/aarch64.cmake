# Compiles the CPU library for aarch64 on another machine, against the headers of that machine's torch:
#   cmake -S . -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=tools/build/aarch64.cmake && cmake --build build/aarch64
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(WILSON_CUDA OFF CACHE STRING "")
set(WILSON_PYTHON_MODULE OFF CACHE BOOL "")

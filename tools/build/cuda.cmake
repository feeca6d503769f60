# Finds out whether the CUDA library can be built, and for which architectures.
#
# wilson_find_cuda() reads WILSON_TORCH_* and, where the user set them, CMAKE_CUDA_COMPILER, CMAKE_CUDA_HOST_COMPILER and
# CMAKE_CUDA_ARCHITECTURES. In its caller it sets WILSON_CUDA_ARCHITECTURES (empty: it cannot be built) and
# WILSON_CUDA_TEXT (the toolkit's version, or why not); if it can, also the two compilers.
function(wilson_find_cuda)
  set(WILSON_CUDA_ARCHITECTURES "" PARENT_SCOPE)

  if(NOT WILSON_TORCH_CUDA OR NOT EXISTS ${WILSON_TORCH_ROOT}/lib/libtorch_cuda.so)
    set(WILSON_CUDA_TEXT "torch ${WILSON_TORCH_VERSION} was built without CUDA" PARENT_SCOPE)
    return()
  endif()

  # The compiler the user named, else that of CUDA_HOME or CUDA_PATH, else the first on the PATH and in the usual place.
  if(CMAKE_CUDA_COMPILER)
    set(nvcc ${CMAKE_CUDA_COMPILER})
  elseif(DEFINED ENV{CUDA_HOME})
    set(nvcc $ENV{CUDA_HOME}/bin/nvcc)
  elseif(DEFINED ENV{CUDA_PATH})
    set(nvcc $ENV{CUDA_PATH}/bin/nvcc)
  else()
    find_program(nvcc nvcc PATHS /usr/local/cuda/bin NO_CACHE)
  endif()
  if(NOT EXISTS "${nvcc}")
    set(WILSON_CUDA_TEXT "no CUDA toolkit (no nvcc in CUDA_HOME, else on the PATH or in /usr/local/cuda)" PARENT_SCOPE)
    return()
  endif()

  # What is on the PATH may be a wrapper script; nvcc itself tells where its toolkit is.
  execute_process(COMMAND ${nvcc} --dryrun -x cu ${CMAKE_CURRENT_FUNCTION_LIST_FILE}
    OUTPUT_VARIABLE dryrun ERROR_VARIABLE dryrun)
  if(dryrun MATCHES "#\\$ TOP=([^\r\n]+)")
    get_filename_component(nvcc ${CMAKE_MATCH_1}/bin/nvcc REALPATH)
  endif()
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT output MATCHES "release [0-9.]+, V(([0-9]+)[0-9.]+)")
    set(WILSON_CUDA_TEXT "${nvcc} does not run" PARENT_SCOPE)
    return()
  endif()
  set(version ${CMAKE_MATCH_1})
  set(major ${CMAKE_MATCH_2})
  if(NOT WILSON_TORCH_CUDA MATCHES "^${major}\\.") # the library and torch must share one CUDA runtime
    set(WILSON_CUDA_TEXT "torch is built for CUDA ${WILSON_TORCH_CUDA}, the toolkit is ${version}" PARENT_SCOPE)
    return()
  endif()

  # "80-real" is machine code, "90-virtual" PTX, "100" both. Machine code for three generations, PTX for those to come.
  set(wanted 80-real 90-real 100)
  if(CMAKE_CUDA_ARCHITECTURES)
    set(wanted ${CMAKE_CUDA_ARCHITECTURES})
  endif()
  execute_process(COMMAND ${nvcc} --list-gpu-arch OUTPUT_VARIABLE known)
  set(kept "")
  foreach(architecture ${wanted})
    string(REGEX MATCH "^[0-9]+" number ${architecture})
    if(known MATCHES "compute_${number}[^0-9]")
      list(APPEND kept ${architecture})
    elseif(WILSON_CUDA STREQUAL ON AND CMAKE_CUDA_ARCHITECTURES)
      message(FATAL_ERROR "CUDA ${version} does not know the architecture ${number} that was asked for")
    else()
      message(STATUS "CUDA ${version} does not know the architecture ${number}: left out")
    endif()
  endforeach()
  if(NOT kept)
    set(WILSON_CUDA_TEXT "CUDA ${version} knows none of the architectures ${wanted}" PARENT_SCOPE)
    return()
  endif()
  # If the architecture that carried the PTX was left out, the newest that is left carries it.
  set(with_ptx "(^|;)[0-9]+[af]?(-virtual)?(;|$)")
  if("${wanted}" MATCHES "${with_ptx}" AND NOT "${kept}" MATCHES "${with_ptx}")
    string(REGEX REPLACE "-real$" "" kept "${kept}")
  endif()

  # A toolkit may be there and compile nothing (parts missing, host compiler too new): a small kernel tells.
  set(host ${CMAKE_CXX_COMPILER})
  if(CMAKE_CUDA_HOST_COMPILER)
    set(host ${CMAKE_CUDA_HOST_COMPILER})
  elseif(DEFINED ENV{CUDAHOSTCXX})
    set(host $ENV{CUDAHOSTCXX})
  endif()
  set(probe ${CMAKE_CURRENT_BINARY_DIR}/cuda_probe)
  file(WRITE ${probe}.cu "#include <cuda_runtime.h>\n__global__ void probe() {}\nvoid launch() { probe<<<1, 1>>>(); }\n")
  execute_process(COMMAND ${nvcc} -std=c++17 -ccbin ${host} -c ${probe}.cu -o ${probe}.o
    OUTPUT_VARIABLE output ERROR_VARIABLE output RESULT_VARIABLE failed)
  if(failed)
    string(REGEX MATCH "[^\r\n]*(error|fatal)[^\r\n]*" line "${output}")
    set(WILSON_CUDA_TEXT "CUDA ${version} compiles nothing here: ${line}" PARENT_SCOPE)
    return()
  endif()

  set(WILSON_CUDA_ARCHITECTURES "${kept}" PARENT_SCOPE)
  set(WILSON_CUDA_TEXT "${version}" PARENT_SCOPE)
  set(CMAKE_CUDA_COMPILER ${nvcc} PARENT_SCOPE)
  set(CMAKE_CUDA_HOST_COMPILER ${host} PARENT_SCOPE)
endfunction()

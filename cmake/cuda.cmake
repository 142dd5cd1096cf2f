# The CUDA kernels as the object library gala_cuda, or `cuda_missing`: why there are none. They share nothing with
# torch's CUDA: their runtime is linked in statically, and only the driver must be new enough for it.
set(GALA_CUDA AUTO CACHE STRING "The CUDA kernels: ON (or an error), OFF, or AUTO, where nvcc is found and works")
set(GALA_CUDA_ARCHITECTURES 80 86 89 90a 100 120 CACHE STRING
  "What the CUDA kernels are compiled for; the oldest one also as PTX, which other GPUs' drivers compile")

set(cuda_sources
  stages pack
  gather grad_x local_grads
  gate gate_backward global_grads
  scale scale_backward
  sums
  hopper/forward)
list(TRANSFORM cuda_sources PREPEND csrc/cuda/)
list(TRANSFORM cuda_sources APPEND .cu)

if(NOT GALA_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "GALA_CUDA is '${GALA_CUDA}', expected AUTO, ON or OFF")
endif()
set(cuda_oldest 999)
foreach(arch IN LISTS GALA_CUDA_ARCHITECTURES)
  if(NOT arch MATCHES "^([0-9]+)[af]?$" OR CMAKE_MATCH_1 LESS 80)
    message(FATAL_ERROR "GALA_CUDA_ARCHITECTURES has '${arch}', expected numbers such as 80 or 90a, from 80 on")
  endif()
  list(APPEND cuda_needed compute_${CMAKE_MATCH_1})
  if(CMAKE_MATCH_1 LESS cuda_oldest)
    set(cuda_oldest ${CMAKE_MATCH_1})
  endif()
endforeach()

# A real compile tells whether nvcc takes the host's compiler and C library.
set(cuda_missing "")
if(GALA_CUDA STREQUAL "OFF")
  set(cuda_missing "GALA_CUDA=OFF")
else()
  find_program(nvcc nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin NO_CACHE)
  if(nvcc AND NOT DEFINED ENV{CUDACXX})
    set(ENV{CUDACXX} ${nvcc})
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE cuda_known)
    string(REPLACE "\n" ";" cuda_known "${cuda_known}")
    list(REMOVE_ITEM cuda_needed ${cuda_known})
    list(JOIN cuda_needed " " cuda_needed)
    if(cuda_needed)
      string(CONCAT cuda_missing "${CMAKE_CUDA_COMPILER} has no ${cuda_needed}: that takes CUDA 12.8 or newer, or "
        "other GALA_CUDA_ARCHITECTURES")
    endif()
  elseif(DEFINED ENV{CUDACXX})
    set(cuda_missing "$ENV{CUDACXX} compiles nothing with this host's compiler (CUDAHOSTCXX names another)")
  else()
    set(cuda_missing "nvcc was not found (CUDACXX names it)")
  endif()
endif()
if(NOT cuda_missing)
  enable_language(CUDA)
  find_package(CUDAToolkit)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)  # older CMakes do not know that nvcc 12 has it
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12)
    set(cuda_missing "${CMAKE_CUDA_COMPILER} is of CUDA ${CMAKE_CUDA_COMPILER_VERSION}, expected 12 or newer")
  elseif(NOT TARGET CUDA::cudart_static)
    set(cuda_missing "the CUDA toolkit of ${CMAKE_CUDA_COMPILER} has no libcudart_static")
  endif()
endif()
if(cuda_missing)
  if(GALA_CUDA STREQUAL "ON")
    message(FATAL_ERROR "GALA_CUDA=ON asks for the CUDA kernels, but ${cuda_missing}")
  endif()
  message(STATUS "Without CUDA kernels: ${cuda_missing}")
  return()
endif()

add_library(gala_cuda OBJECT ${cuda_sources})
target_include_directories(gala_cuda PRIVATE csrc/cuda csrc)
set(cuda_code ${GALA_CUDA_ARCHITECTURES})
list(TRANSFORM cuda_code APPEND -real)
set_target_properties(gala_cuda PROPERTIES
  CUDA_ARCHITECTURES "${cuda_code};${cuda_oldest}-virtual"
  CUDA_STANDARD 20
  CUDA_STANDARD_REQUIRED ON
  CUDA_VISIBILITY_PRESET hidden)
list(JOIN GALA_CUDA_ARCHITECTURES " " cuda_architectures)
set(cuda_architectures "${cuda_architectures} ${cuda_oldest}+PTX")
target_compile_definitions(gala_cuda PRIVATE "GALA_CUDA_ARCHITECTURES=\"${cuda_architectures}\"")
target_compile_options(gala_cuda PRIVATE 
  -Xcompiler=-Wall,-Wextra,-Werror=switch,-ffile-prefix-map=${CMAKE_SOURCE_DIR}/= --threads=2)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13)  # every driver of CUDA 13 can read it
  target_compile_options(gala_cuda PRIVATE --compress-mode=size)
endif()
if("${CMAKE_CXX_FLAGS} ${CMAKE_CUDA_FLAGS}" MATCHES "-Werror")
  target_compile_options(gala_cuda PRIVATE "SHELL:-Werror all-warnings" -Xcompiler=-Werror)
endif()
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION} kernels for ${cuda_architectures}")

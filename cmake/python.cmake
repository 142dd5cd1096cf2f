# The extension gala_cuda._C.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

# find_package(Torch) brings torch's own flags and needs its CUDA toolkit; the stable ABI needs but two folders.
set(find_pybind11 "import pybind11; print(pybind11.get_cmake_dir())")
set(find_torch "import importlib.util; print(importlib.util.find_spec('torch').submodule_search_locations[0])")
execute_process(COMMAND ${Python_EXECUTABLE} -c "${find_pybind11}"
  OUTPUT_VARIABLE pybind11_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(NOT GALA_TORCH)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "${find_torch}"
    OUTPUT_VARIABLE GALA_TORCH OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
endif()
find_package(pybind11 2.13 REQUIRED CONFIG)

pybind11_add_module(_C MODULE csrc/module.cpp csrc/torch_bindings.cpp csrc/torch_released.cpp ${kernels})
list(JOIN isas " " isas)
target_compile_definitions(_C PRIVATE
  TORCH_TARGET_VERSION=0x020a000000000000  # 2.10, see torch/csrc/stable/version.h
  GALA_ISAS="${isas}")
target_compile_options(_C PRIVATE -ffile-prefix-map=${GALA_TORCH}/=)
find_library(torch_cpu torch_cpu PATHS ${GALA_TORCH}/lib NO_DEFAULT_PATH REQUIRED NO_CACHE)
add_library(torch_stable INTERFACE)  # linked after pybind11: torch's folder holds another copy of that
target_include_directories(torch_stable SYSTEM INTERFACE ${GALA_TORCH}/include)
target_link_libraries(torch_stable INTERFACE ${torch_cpu})
target_link_libraries(_C PRIVATE gala_flags torch_stable)
if(cuda_missing)
  target_compile_definitions(_C PRIVATE "GALA_CUDA_MISSING=\"${cuda_missing}\"")
else()
  target_sources(_C PRIVATE csrc/torch_cuda.cpp)
  target_compile_definitions(_C PRIVATE GALA_CUDA_VERSION="${CMAKE_CUDA_COMPILER_VERSION}")
  set_target_properties(_C PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(_C PRIVATE CUDA::cudart_static)
  target_link_options(_C PRIVATE -Wl,--exclude-libs,ALL)  # CUDA's runtime stays inside
endif()
install(TARGETS _C DESTINATION .)

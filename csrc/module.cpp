// The Python module gala_cuda._C. Loading it registers the operators of torch_bindings.cpp; it tells how it was built.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include <string>

#include "gala.h"
#ifdef GALA_CUDA_VERSION
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;

namespace {

#if defined(__clang__)
constexpr auto compiler = "Clang " __clang_version__;
#else
constexpr auto compiler = "GCC " __VERSION__;
#endif

std::string torch_target() {
  constexpr uint64_t version = TORCH_TARGET_VERSION;  // a byte each: major, minor, patch
  return std::to_string(version >> 56) + "." + std::to_string(version >> 48 & 0xff);
}

py::dict build_info() {
  using namespace pybind11::literals;
  py::dict info("compiler"_a = compiler, "cxx_standard"_a = __cplusplus / 100 % 100, "torch_headers"_a = TORCH_VERSION,
                "torch_target"_a = torch_target(), "cpu_isas"_a = py::str(GALA_ISAS).attr("split")());
#ifdef GALA_CUDA_VERSION
  info["cuda"] = GALA_CUDA_VERSION;
  info["cuda_architectures"] = py::str(gala::cuda::architectures()).attr("split")();
#else
  info["cuda_missing"] = GALA_CUDA_MISSING;
#endif
  return info;
}

// The newest CUDA that the driver runs, 1000 * major + 10 * minor; 0 without a driver or without CUDA in this build.
int cuda_driver() {
  int version = 0;
#ifdef GALA_CUDA_VERSION
  cudaDriverGetVersion(&version);
#endif
  return version;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.def("build_info", &build_info,
             "What this extension was built with: compiler, cxx_standard, torch_headers (version), torch_target (the "
             "oldest torch it runs on), cpu_isas (instruction sets the CPU kernels were compiled for), cuda (version) "
             "and cuda_architectures (of the CUDA kernels; newer GPUs compile the one with +PTX), or cuda_missing "
             "(why there are none).");
  module.def("cuda_driver", &cuda_driver,
             "The newest CUDA that the driver runs, 1000 * major + 10 * minor; 0 without a driver, or where this "
             "extension was built without CUDA.");
}

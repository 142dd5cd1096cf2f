// The Python module gala_cuda._C. Loading it registers the operators of torch_bindings.cpp; it tells how it was built.
#include <pybind11/pybind11.h>
#include <torch/headeronly/version.h>

#include <string>

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
  return py::dict("compiler"_a = compiler, "cxx_standard"_a = __cplusplus / 100 % 100,
                  "torch_headers"_a = TORCH_VERSION, "torch_target"_a = torch_target(),
                  "cpu_isas"_a = py::str(GALA_ISAS).attr("split")());
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.def("build_info", &build_info,
             "What this extension was built with: compiler, cxx_standard, torch_headers (version), torch_target (the "
             "oldest torch it runs on), cpu_isas (instruction sets the CPU kernels were compiled for).");
}

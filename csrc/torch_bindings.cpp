// The private operators gala_native::*: their schemas, and the CPU's.

#include <torch/csrc/stable/library.h>

#include <string>

#include "torch_tensors.h"

namespace {

using namespace gala::bindings;

void run_forward(gala::Problem& problem, const gala::Forward& f, const Tensor&, bool) {
  problem.parallel = torch_threads();
  gala::cpu::forward(problem, f);
}

void run_backward(gala::Problem& problem, const gala::Backward& b, const Tensor&, bool) {
  problem.parallel = torch_threads();
  gala::cpu::backward(problem, b);
}

std::string cpu_isa() { return gala::cpu::isa(); }

}  // namespace

#define GALA_WEIGHTS                                                                                               \
  "Tensor w_shrink, Tensor w_expand, Tensor v_shrink, Tensor v_collapse, Tensor a, Tensor m, Tensor? b_w_shrink, " \
  "Tensor? b_w_expand, Tensor? b_v_shrink, Tensor? b_v_collapse"

STABLE_TORCH_LIBRARY(gala_native, m) {
  m.def("forward(Tensor x, " GALA_WEIGHTS
        ", Tensor? residual, int squash, bool return_map, bool save, bool tf32)"
        " -> (Tensor out, Tensor? map, Tensor? stats, Tensor? relu_mask)");
  m.def("backward(Tensor grad_out, Tensor? map_factor, Tensor x, " GALA_WEIGHTS
        ", Tensor? out, Tensor stats, Tensor relu_mask, int squash, bool need_input, bool need_weights, bool tf32)"
        " -> (Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, "
        "Tensor?)");
  m.def("cpu_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(gala_native, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward<run_forward>));
  m.impl("backward", TORCH_BOX(&backward<run_backward>));
}

STABLE_TORCH_LIBRARY_IMPL(gala_native, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }

// The private operators gala_native::*: torch tensors to the plain structs of gala.h, through torch's stable ABI.
//
// gala_cuda checks arguments in Python, where they have names; the checks here keep a direct call from reading outside
// of its tensors.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "gala.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

gala::DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return gala::DType::f32;
    case ScalarType::Double: return gala::DType::f64;
    case ScalarType::BFloat16: return gala::DType::bf16;
    case ScalarType::Half: return gala::DType::f16;
    default: STD_TORCH_CHECK(false, "x has an unsupported dtype");
  }
}

ScalarType accumulation_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

int64_t pixel_stride(const Tensor& x) { return x.size(3) == 1 ? x.stride(2) : x.stride(3); }

// Whether the stages run over channels rather than pixels: contract.channel_lanes in Python.
bool channel_lanes(const Tensor& x) { return x.size(1) > 1 ? x.stride(1) == 1 : pixel_stride(x) != 1; }

gala::FeatureMap feature_map(const Tensor& t, const Tensor& like, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4 && t.is_cpu() && t.scalar_type() == like.scalar_type(), name, " does not go with x");
  for (int64_t dim = 0; dim < 4; ++dim) STD_TORCH_CHECK(t.size(dim) == like.size(dim), name, " has not the shape of x");
  const int64_t height = t.size(2), width = t.size(3), stride = pixel_stride(t);
  const bool one_step = height == 1 || width == 1 || t.stride(2) == width * t.stride(3);
  const bool adjacent = channel_lanes(like) ? t.size(1) == 1 || t.stride(1) == 1 : height * width == 1 || stride == 1;
  STD_TORCH_CHECK(one_step && adjacent, name, " cannot be read in place");
  return {t.data_ptr(), t.stride(0), t.stride(1), stride};
}

const void* vector(const Tensor& t, ScalarType type, int64_t size, const char* name) {
  STD_TORCH_CHECK(t.is_cpu() && t.scalar_type() == type && t.is_contiguous() && t.numel() == size, name,
                  " has a wrong size, type, device or strides");
  return t.data_ptr();
}

const void* vector(const Optional& t, ScalarType type, int64_t size, const char* name) {
  return t ? vector(*t, type, size, name) : nullptr;
}

gala::Parallel torch_threads() {
  return {[](int64_t tasks, void (*body)(void*, int64_t), void* context) {
            torch::stable::parallel_for(0, tasks, 1, [=](int64_t begin, int64_t end) {
              for (int64_t task = begin; task < end; ++task) body(context, task);
            });
          },
          static_cast<int64_t>(torch::stable::get_num_threads())};
}

gala::Problem problem_of(const Tensor& x, const Tensor& w_shrink, const Tensor& w_expand, const Tensor& v_shrink,
                         const Tensor& v_collapse, const Tensor& a, const Tensor& m, const Optional& b_w_shrink,
                         const Optional& b_w_expand, const Optional& b_v_shrink, const Optional& b_v_collapse,
                         bool tanh) {
  STD_TORCH_CHECK(x.dim() == 4 && w_shrink.dim() == 2, "x or w_shrink has a wrong rank");
  const int64_t c = x.size(1), r = w_shrink.size(0);
  const ScalarType type = accumulation_type(x);
  const gala::Weights weights{vector(w_shrink, type, r * c, "w_shrink"),
                              vector(w_expand, type, c * r, "w_expand"),
                              vector(v_shrink, type, r * c, "v_shrink"),
                              vector(v_collapse, type, r, "v_collapse"),
                              vector(a, type, c, "a"),
                              vector(m, type, c, "m"),
                              vector(b_w_shrink, type, r, "b_w_shrink"),
                              vector(b_w_expand, type, c, "b_w_expand"),
                              vector(b_v_shrink, type, r, "b_v_shrink"),
                              vector(b_v_collapse, type, 1, "b_v_collapse")};
  return {{x.size(0), c, x.size(2) * x.size(3), r},
          dtype_of(x),
          tanh ? gala::Squash::tanh : gala::Squash::sigmoid,
          channel_lanes(x),
          weights,
          torch_threads()};
}

Tensor new_tensor(const Tensor& x, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::new_empty(x, sizes, type);
}

int64_t words(const gala::Shape& s) { return (s.reduced + 31) / 32; }
int64_t stats_width(const gala::Shape& s) { return s.pixels + s.channels + s.reduced; }

std::tuple<Tensor, Tensor, Tensor, Tensor> forward_cpu(const Tensor& x, const Tensor& w_shrink, const Tensor& w_expand,
                                                       const Tensor& v_shrink, const Tensor& v_collapse,
                                                       const Tensor& a, const Tensor& m, const Optional& b_w_shrink,
                                                       const Optional& b_w_expand, const Optional& b_v_shrink,
                                                       const Optional& b_v_collapse, const Optional& residual,
                                                       bool tanh, bool return_map, bool save) {
  const gala::Problem problem = problem_of(x, w_shrink, w_expand, v_shrink, v_collapse, a, m, b_w_shrink, b_w_expand,
                                           b_v_shrink, b_v_collapse, tanh);
  const gala::Shape& s = problem.shape;
  const ScalarType type = accumulation_type(x);
  Tensor out = torch::stable::empty_like(x);
  Tensor map = return_map ? new_tensor(x, {s.images, x.size(2), x.size(3)}, type) : new_tensor(x, {0}, type);
  Tensor stats = new_tensor(x, {s.images, stats_width(s)}, type);
  Tensor bits =
      save ? new_tensor(x, {s.images, s.pixels, words(s)}, ScalarType::Int) : new_tensor(x, {0}, ScalarType::Int);
  if (s.images > 0) {
    gala::Forward f{};
    f.x = feature_map(x, x, "x");
    if (residual) f.residual = feature_map(*residual, x, "residual");
    f.out = feature_map(out, x, "out");
    f.map = return_map ? map.data_ptr() : nullptr;
    f.stats = stats.data_ptr();
    f.bits = save ? static_cast<int32_t*>(bits.data_ptr()) : nullptr;
    gala::cpu::forward(problem, f);
  }
  return {out, map, save ? stats : new_tensor(x, {0}, type), bits};
}

using Gradients =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// A gradient like the contiguous tensor `t`, or an empty tensor where it is not wanted.
Tensor gradient(const Tensor& x, const Optional& t, bool wanted, void** to) {
  const ScalarType type = accumulation_type(x);
  if (!t || !wanted) return new_tensor(x, {0}, type);
  Tensor grad = torch::stable::empty_like(*t);
  if (x.size(0) == 0) torch::stable::zero_(grad);
  *to = grad.data_ptr();
  return grad;
}

Gradients backward_cpu(const Tensor& grad_out, const Optional& map_factor, const Tensor& x, const Tensor& w_shrink,
                       const Tensor& w_expand, const Tensor& v_shrink, const Tensor& v_collapse, const Tensor& a,
                       const Tensor& m, const Optional& b_w_shrink, const Optional& b_w_expand,
                       const Optional& b_v_shrink, const Optional& b_v_collapse, const Optional& out,
                       const Tensor& stats, const Tensor& bits, bool tanh, bool need_input, bool need_weights) {
  const gala::Problem problem = problem_of(x, w_shrink, w_expand, v_shrink, v_collapse, a, m, b_w_shrink, b_w_expand,
                                           b_v_shrink, b_v_collapse, tanh);
  const gala::Shape& s = problem.shape;
  const ScalarType type = accumulation_type(x);
  gala::Backward b{};
  gala::WeightGrads& g = b.grads;
  const bool w = need_weights;
  Tensor grad_x = need_input ? torch::stable::empty_like(x) : new_tensor(x, {0}, x.scalar_type());
  Tensor grad_residual = out ? torch::stable::empty_like(x) : new_tensor(x, {0}, x.scalar_type());
  Gradients gradients{grad_x,
                      gradient(x, w_shrink, w, &g.w_shrink),
                      gradient(x, w_expand, w, &g.w_expand),
                      gradient(x, v_shrink, w, &g.v_shrink),
                      gradient(x, v_collapse, w, &g.v_collapse),
                      gradient(x, a, w, &g.a),
                      gradient(x, m, w, &g.m),
                      gradient(x, b_w_shrink, w, &g.b_w_shrink),
                      gradient(x, b_w_expand, w, &g.b_w_expand),
                      gradient(x, b_v_shrink, w, &g.b_v_shrink),
                      gradient(x, b_v_collapse, w, &g.b_v_collapse),
                      grad_residual};
  if (s.images == 0) return gradients;
  b.x = feature_map(x, x, "x");
  b.grad_out = feature_map(grad_out, x, "grad_out");
  b.map_factor = vector(map_factor, type, s.images * s.pixels, "map_factor");
  b.stats = vector(stats, type, s.images * stats_width(s), "stats");
  b.bits = static_cast<const int32_t*>(vector(bits, ScalarType::Int, s.images * s.pixels * words(s), "bits"));
  if (need_input) b.grad_x = feature_map(grad_x, x, "grad_x");
  if (out) {
    b.out = feature_map(*out, x, "out");
    b.grad_residual = feature_map(grad_residual, x, "grad_residual");
  }
  gala::cpu::backward(problem, b);
  return gradients;
}

std::string cpu_isa() { return gala::cpu::isa(); }

}  // namespace

#define GALA_WEIGHTS                                                                                               \
  "Tensor w_shrink, Tensor w_expand, Tensor v_shrink, Tensor v_collapse, Tensor a, Tensor m, Tensor? b_w_shrink, " \
  "Tensor? b_w_expand, Tensor? b_v_shrink, Tensor? b_v_collapse"

STABLE_TORCH_LIBRARY(gala_native, m) {
  m.def("forward_cpu(Tensor x, " GALA_WEIGHTS
        ", Tensor? residual, bool tanh, bool return_map, bool save)"
        " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("backward_cpu(Tensor grad_out, Tensor? map_factor, Tensor x, " GALA_WEIGHTS
        ", Tensor? out, Tensor stats, "
        "Tensor bits, bool tanh, bool need_input, bool need_weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
        "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("cpu_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(gala_native, CPU, m) {
  m.impl("forward_cpu", TORCH_BOX(&forward_cpu));
  m.impl("backward_cpu", TORCH_BOX(&backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(gala_native, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }

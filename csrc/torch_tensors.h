// Turns torch tensors into the plain structs of gala.h, for every device, through torch's stable ABI.
//
// gala_cuda checks arguments in Python, where they have names; the checks here keep a direct call from reading outside
// of its tensors.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <tuple>
#include <vector>

#include "gala.h"

namespace gala::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Optional = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Optional, Optional, Optional>;
using Gradients = std::tuple<Optional, Optional, Optional, Optional, Optional, Optional, Optional, Optional, Optional,
                             Optional, Optional, Optional>;

// How a device runs the stages on tensors that lie beside x. `tf32`: products of float32 may take one TF32 product.
using RunForward = void (*)(Problem&, const Forward&, const Tensor& x, bool tf32);
using RunBackward = void (*)(Problem&, const Backward&, const Tensor& x, bool tf32);

inline Parallel torch_threads() {
  return {[](int64_t tasks, void (*body)(void*, int64_t), void* context) {
            torch::stable::parallel_for(0, tasks, 1, [=](int64_t begin, int64_t end) {
              for (int64_t task = begin; task < end; ++task) body(context, task);
            });
          },
          static_cast<int64_t>(torch::stable::get_num_threads())};
}

inline DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, "x has an unsupported dtype");
  }
}

inline Squash squash_of(int64_t code) {
  switch (const auto squash = static_cast<Squash>(code)) {
    case Squash::tanh:
    case Squash::sigmoid: return squash;
  }
  STD_TORCH_CHECK(false, "squash is ", code, ", expected 0 for tanh or 1 for sigmoid");
}

inline ScalarType accumulation_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline bool same_device(const Tensor& t, const Tensor& x) {
  return t.is_cpu() == x.is_cpu() && t.is_cuda() == x.is_cuda() && t.get_device_index() == x.get_device_index();
}

inline int64_t pixel_stride(const Tensor& x) { return x.size(3) == 1 ? x.stride(2) : x.stride(3); }

// Whether the stages run over channels rather than pixels: backends/layout.py in Python.
inline bool is_channels_last(const Tensor& x) { return x.size(1) > 1 ? x.stride(1) == 1 : pixel_stride(x) != 1; }

inline FeatureMap feature_map(const Tensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.dim() == 4 && same_device(t, x) && t.scalar_type() == x.scalar_type(), name, " does not go with x");
  for (int64_t dim = 0; dim < 4; ++dim) STD_TORCH_CHECK(t.size(dim) == x.size(dim), name, " has not the shape of x");
  const int64_t height = t.size(2), width = t.size(3), stride = pixel_stride(t);
  const bool one_step = height == 1 || width == 1 || t.stride(2) == width * t.stride(3);
  const bool adjacent = is_channels_last(x) ? t.size(1) == 1 || t.stride(1) == 1 : height * width == 1 || stride == 1;
  STD_TORCH_CHECK(one_step && adjacent, name, " cannot be read in place");
  return {t.data_ptr(), t.stride(0), t.stride(1), stride};
}

inline void* vector(const Tensor& t, const Tensor& x, ScalarType type, int64_t size, const char* name) {
  STD_TORCH_CHECK(same_device(t, x) && t.scalar_type() == type && t.is_contiguous() && t.numel() == size, name,
                  " has a wrong size, type, device or strides");
  return t.data_ptr();
}

inline Tensor new_tensor(const Tensor& x, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::new_empty(x, sizes, type);
}

inline int64_t words(const Shape& s) { return (s.reduced + 31) / 32; }
inline int64_t stats_width(const Shape& s) { return s.pixels + s.channels + s.reduced; }

// The weights and biases in the order of every operator's arguments.
struct Parameters {
  const Tensor &w_shrink, &w_expand, &v_shrink, &v_collapse, &a, &m;
  const Optional &b_w_shrink, &b_w_expand, &b_v_shrink, &b_v_collapse;
};

inline Problem problem_of(const Tensor& x, const Parameters& p, int64_t squash) {
  STD_TORCH_CHECK(x.dim() == 4 && p.w_shrink.dim() == 2, "x or w_shrink has a wrong rank");
  const int64_t c = x.size(1), r = p.w_shrink.size(0);
  const auto weight = [&](const Tensor& t, int64_t size, const char* name) {
    return vector(t, x, accumulation_type(x), size, name);
  };
  const auto bias = [&](const Optional& t, int64_t size, const char* name) {
    return t ? weight(*t, size, name) : nullptr;
  };
  const Weights weights{weight(p.w_shrink, r * c, "w_shrink"),
                        weight(p.w_expand, c * r, "w_expand"),
                        weight(p.v_shrink, r * c, "v_shrink"),
                        weight(p.v_collapse, r, "v_collapse"),
                        weight(p.a, c, "a"),
                        weight(p.m, c, "m"),
                        bias(p.b_w_shrink, r, "b_w_shrink"),
                        bias(p.b_w_expand, c, "b_w_expand"),
                        bias(p.b_v_shrink, r, "b_v_shrink"),
                        bias(p.b_v_collapse, 1, "b_v_collapse")};
  return {{x.size(0), c, x.size(2) * x.size(3), r}, dtype_of(x), squash_of(squash), is_channels_last(x), weights, {}};
}

// The operator gala_native::forward on one device.
template <RunForward run>
Outputs forward(const Tensor& x, const Tensor& w_shrink, const Tensor& w_expand, const Tensor& v_shrink,
                const Tensor& v_collapse, const Tensor& a, const Tensor& m, const Optional& b_w_shrink,
                const Optional& b_w_expand, const Optional& b_v_shrink, const Optional& b_v_collapse,
                const Optional& residual, int64_t squash, bool return_map, bool save, bool tf32) {
  const Parameters parameters{w_shrink, w_expand,   v_shrink,   v_collapse, a,
                              m,        b_w_shrink, b_w_expand, b_v_shrink, b_v_collapse};
  Problem problem = problem_of(x, parameters, squash);
  const Shape& s = problem.shape;
  const ScalarType type = accumulation_type(x);
  Forward f{};
  f.x = feature_map(x, x, "x");
  if (residual) f.residual = feature_map(*residual, x, "residual");
  Tensor out = torch::stable::empty_like(x), stats = new_tensor(x, {s.images, stats_width(s)}, type);
  Optional map, relu_mask;
  if (return_map) map = new_tensor(x, {s.images, x.size(2), x.size(3)}, type);
  if (save) relu_mask = new_tensor(x, {s.images, s.pixels, words(s)}, ScalarType::Int);
  if (s.images > 0) {
    f.out = feature_map(out, x, "out");
    f.map = map ? map->data_ptr() : nullptr;
    f.stats = stats.data_ptr();
    f.relu_mask = relu_mask ? static_cast<int32_t*>(relu_mask->data_ptr()) : nullptr;
    run(problem, f, x, tf32);
  }
  return {out, map, save ? Optional(stats) : std::nullopt, relu_mask};
}

// A gradient like the contiguous tensor `t`, where that is there and its gradient wanted; `to` is set to its memory.
inline Optional gradient(const Tensor& x, const Optional& t, bool wanted, void** to) {
  if (!t || !wanted) return std::nullopt;
  Tensor grad = torch::stable::empty_like(*t);
  if (x.size(0) == 0) torch::stable::zero_(grad);
  *to = grad.data_ptr();
  return grad;
}

// The operator gala_native::backward on one device.
template <RunBackward run>
Gradients backward(const Tensor& grad_out, const Optional& map_factor, const Tensor& x, const Tensor& w_shrink,
                   const Tensor& w_expand, const Tensor& v_shrink, const Tensor& v_collapse, const Tensor& a,
                   const Tensor& m, const Optional& b_w_shrink, const Optional& b_w_expand, const Optional& b_v_shrink,
                   const Optional& b_v_collapse, const Optional& out, const Tensor& stats, const Tensor& relu_mask,
                   int64_t squash, bool need_input, bool need_weights, bool tf32) {
  const Parameters parameters{w_shrink, w_expand,   v_shrink,   v_collapse, a,
                              m,        b_w_shrink, b_w_expand, b_v_shrink, b_v_collapse};
  Problem problem = problem_of(x, parameters, squash);
  const Shape& s = problem.shape;
  const ScalarType type = accumulation_type(x);
  Backward b{};
  b.x = feature_map(x, x, "x");
  b.grad_out = feature_map(grad_out, x, "grad_out");
  if (out) b.out = feature_map(*out, x, "out");
  b.map_factor = map_factor ? vector(*map_factor, x, type, s.images * s.pixels, "map_factor") : nullptr;
  b.stats = vector(stats, x, type, s.images * stats_width(s), "stats");
  b.relu_mask =
      static_cast<int32_t*>(vector(relu_mask, x, ScalarType::Int, s.images * s.pixels * words(s), "relu_mask"));
  WeightGrads& g = b.grads;
  const bool w = need_weights;
  Optional grad_x, grad_residual;
  if (need_input) grad_x = torch::stable::empty_like(x);
  if (out) grad_residual = torch::stable::empty_like(x);
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
  if (grad_x) b.grad_x = feature_map(*grad_x, x, "grad_x");
  if (grad_residual) b.grad_residual = feature_map(*grad_residual, x, "grad_residual");
  run(problem, b, x, tf32);
  return gradients;
}

}  // namespace gala::bindings

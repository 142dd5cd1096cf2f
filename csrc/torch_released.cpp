// The private operators gala_native::released_*: the stages of the released code's block on the CPU. Hidden layers are
// [N, H, W, R], contiguous, in the accumulation type.

#include <torch/csrc/stable/library.h>

#include "torch_tensors.h"

namespace {

using namespace gala::bindings;

// A call's problem, and how its tensors lie in memory beside x.
struct Stage {
  const Tensor& x;
  gala::Problem problem{};
  gala::Between between{};

  Stage(const Tensor& x, int64_t reduced, int64_t squash) : x(x) {
    STD_TORCH_CHECK(x.dim() == 4 && x.size(0) > 0, "x has no image");
    problem.shape = {x.size(0), x.size(1), x.size(2) * x.size(3), reduced};
    problem.dtype = dtype_of(x);
    problem.squash = squash_of(squash);
    problem.channels_last = is_channels_last(x);
    problem.parallel = torch_threads();
  }
  void* weight(const Tensor& t, int64_t size, const char* name) const {
    return vector(t, x, accumulation_type(x), size, name);
  }
  void* of_channels(const Tensor& t, const char* name) const {
    return weight(t, problem.shape.images * problem.shape.channels, name);
  }
  void* stats(const Tensor& t) const { return weight(t, problem.shape.images * stats_width(problem.shape), "stats"); }
  void* hidden(const Tensor& t, const char* name) const {
    return weight(t, problem.shape.images * problem.shape.pixels * problem.shape.reduced, name);
  }
  Tensor new_hidden() const { return new_tensor({x.size(0), x.size(2), x.size(3), problem.shape.reduced}); }
  Tensor new_tensor(const std::vector<int64_t>& sizes) const {
    return gala::bindings::new_tensor(x, sizes, accumulation_type(x));
  }
  void set_gates(const Tensor& alpha, const Tensor& beta) {
    between.alpha = of_channels(alpha, "alpha");
    between.beta = of_channels(beta, "beta");
  }
};

std::tuple<Tensor, Tensor> gather(const Tensor& x, const Tensor& v_shrink, const Tensor& b_v_shrink) {
  STD_TORCH_CHECK(v_shrink.dim() == 2, "v_shrink has a wrong rank");
  Stage stage(x, v_shrink.size(0), 0);
  const gala::Shape& s = stage.problem.shape;
  stage.problem.weights.v_shrink = stage.weight(v_shrink, s.reduced * s.channels, "v_shrink");
  stage.problem.weights.b_v_shrink = stage.weight(b_v_shrink, s.reduced, "b_v_shrink");
  Tensor stats = stage.new_tensor({s.images, stats_width(s)}), hidden = stage.new_hidden();
  gala::Forward f{};
  f.x = feature_map(x, x, "x");
  f.stats = stats.data_ptr();
  stage.between.hidden = hidden.data_ptr();
  gala::cpu::gather(stage.problem, f, stage.between);
  return {stats, hidden};
}

std::tuple<Tensor, Optional> scale(const Tensor& x, const Optional& residual, const Tensor& hidden,
                                   const Tensor& v_collapse, const Tensor& b_v_collapse, const Tensor& alpha,
                                   const Tensor& beta, const Tensor& stats, int64_t squash, bool return_map) {
  Stage stage(x, v_collapse.numel(), squash);
  const gala::Shape& s = stage.problem.shape;
  stage.problem.weights.v_collapse = stage.weight(v_collapse, s.reduced, "v_collapse");
  stage.problem.weights.b_v_collapse = stage.weight(b_v_collapse, 1, "b_v_collapse");
  stage.set_gates(alpha, beta);
  stage.between.hidden = stage.hidden(hidden, "hidden");
  Tensor out = torch::stable::empty_like(x);
  Optional map;
  if (return_map) map = stage.new_tensor({s.images, x.size(2), x.size(3)});
  gala::Forward f{};
  f.x = feature_map(x, x, "x");
  if (residual) f.residual = feature_map(*residual, x, "residual");
  f.out = feature_map(out, x, "out");
  f.map = map ? map->data_ptr() : nullptr;
  f.stats = stage.stats(stats);
  gala::cpu::scale(stage.problem, f, stage.between);
  return {out, map};
}

std::tuple<Tensor, Tensor, Tensor, Optional, Optional, Optional> scale_backward(
    const Tensor& grad_out, const Optional& map_factor, const Tensor& x, const Optional& out, const Tensor& hidden,
    const Tensor& v_collapse, const Tensor& alpha, const Tensor& beta, const Tensor& stats, const Optional& grad_x,
    int64_t squash, bool need_weights) {
  Stage stage(x, v_collapse.numel(), squash);
  const gala::Shape& s = stage.problem.shape;
  stage.problem.weights.v_collapse = stage.weight(v_collapse, s.reduced, "v_collapse");
  stage.set_gates(alpha, beta);
  stage.between.hidden = stage.hidden(hidden, "hidden");
  Tensor grad_hidden = stage.new_hidden();
  Tensor d_alpha = stage.new_tensor({s.images, s.channels}), d_beta = stage.new_tensor({s.images, s.channels});
  stage.between.grad_hidden = grad_hidden.data_ptr();
  stage.between.d_alpha = d_alpha.data_ptr();
  stage.between.d_beta = d_beta.data_ptr();
  gala::Backward b{};
  b.x = feature_map(x, x, "x");
  b.grad_out = feature_map(grad_out, x, "grad_out");
  b.map_factor = map_factor ? stage.weight(*map_factor, s.images * s.pixels, "map_factor") : nullptr;
  b.stats = stage.stats(stats);
  if (grad_x) b.grad_x = feature_map(*grad_x, x, "grad_x");
  Optional grad_residual, grad_collapse, grad_shift;
  if (out) {
    grad_residual = torch::stable::empty_like(x);
    b.out = feature_map(*out, x, "out");
    b.grad_residual = feature_map(*grad_residual, x, "grad_residual");
  }
  if (need_weights) {
    grad_collapse = stage.new_tensor({s.reduced});
    grad_shift = stage.new_tensor({1});
    b.grads.v_collapse = grad_collapse->data_ptr();
    b.grads.b_v_collapse = grad_shift->data_ptr();
  }
  gala::cpu::scale_backward(stage.problem, b, stage.between);
  return {grad_hidden, d_alpha, d_beta, grad_residual, grad_collapse, grad_shift};
}

std::tuple<Optional, Optional> gather_backward(const Tensor& grad_sum, const Tensor& x, const Tensor& hidden,
                                               const Tensor& grad_hidden, const Tensor& v_shrink, const Tensor& alpha,
                                               const Tensor& beta, const Tensor& dp, const Tensor& stats,
                                               const Optional& grad_x, int64_t squash, bool need_weights) {
  STD_TORCH_CHECK(v_shrink.dim() == 2, "v_shrink has a wrong rank");
  Stage stage(x, v_shrink.size(0), squash);
  const gala::Shape& s = stage.problem.shape;
  stage.problem.weights.v_shrink = stage.weight(v_shrink, s.reduced * s.channels, "v_shrink");
  stage.set_gates(alpha, beta);
  stage.between.dp = stage.of_channels(dp, "dp");
  stage.between.hidden = stage.hidden(hidden, "hidden");
  stage.between.grad_hidden = stage.hidden(grad_hidden, "grad_hidden");
  gala::Backward b{};
  b.x = feature_map(x, x, "x");
  b.grad_out = feature_map(grad_sum, x, "grad_sum");
  b.stats = stage.stats(stats);
  if (grad_x) b.grad_x = feature_map(*grad_x, x, "grad_x");
  Optional grad_shrink, grad_bias;
  if (need_weights) {
    grad_shrink = stage.new_tensor({s.reduced, s.channels});
    grad_bias = stage.new_tensor({s.reduced});
    b.grads.v_shrink = grad_shrink->data_ptr();
    b.grads.b_v_shrink = grad_bias->data_ptr();
  }
  gala::cpu::gather_backward(stage.problem, b, stage.between);
  return {grad_shrink, grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(gala_native, m) {
  m.def("released_gather(Tensor x, Tensor v_shrink, Tensor b_v_shrink) -> (Tensor stats, Tensor hidden)");
  m.def(
      "released_scale(Tensor x, Tensor? residual, Tensor hidden, Tensor v_collapse, Tensor b_v_collapse, Tensor alpha, "
      "Tensor beta, Tensor(a!) stats, int squash, bool return_map) -> (Tensor out, Tensor? map)");
  m.def(
      "released_scale_backward(Tensor grad_out, Tensor? map_factor, Tensor x, Tensor? out, Tensor hidden, "
      "Tensor v_collapse, Tensor alpha, Tensor beta, Tensor stats, Tensor(a!)? grad_x, int squash, bool need_weights)"
      " -> (Tensor grad_hidden, Tensor d_alpha, Tensor d_beta, Tensor? residual, Tensor? v_collapse, "
      "Tensor? b_v_collapse)");
  m.def(
      "released_gather_backward(Tensor grad_sum, Tensor x, Tensor hidden, Tensor grad_hidden, Tensor v_shrink, "
      "Tensor alpha, Tensor beta, Tensor dp, Tensor stats, Tensor(a!)? grad_x, int squash, bool need_weights)"
      " -> (Tensor? v_shrink, Tensor? b_v_shrink)");
}

STABLE_TORCH_LIBRARY_IMPL(gala_native, CPU, m) {
  m.impl("released_gather", TORCH_BOX(&gather));
  m.impl("released_scale", TORCH_BOX(&scale));
  m.impl("released_scale_backward", TORCH_BOX(&scale_backward));
  m.impl("released_gather_backward", TORCH_BOX(&gather_backward));
}

// The forward and the backward pass: checks the arguments, divides the workspace, and runs the stages in order.

#include <primitives.cuh>
#include <stdexcept>
#include <string>

#include "element_types.cuh"
#include "launchers.h"

namespace gala::cuda {

namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("gala::cuda: " + what); }

void check_size(const char* name, int64_t size) {
  constexpr int64_t kMost = int64_t{1} << 30;
  if (size < 1 || size > kMost)
    refuse("shape." + std::string(name) + " is " + std::to_string(size) + ", expected 1 to " + std::to_string(kMost));
}

// Products that kernels count in 32 bits, or that decide how many blocks are launched.
void check_product(const char* name, int64_t product, int power) {
  if (product >> power)
    refuse(std::string(name) + " is " + std::to_string(product) + ", expected fewer than 2^" + std::to_string(power));
}

void check_pointer(const char* name, const void* pointer) {
  if (!pointer) refuse(std::string(name) + " is null");
}

void check_map(const Problem& problem, const char* name, const FeatureMap& map) {
  const std::string label(name);
  check_pointer((label + ".data").c_str(), map.data);
  const int bytes = element_bytes(problem.dtype);
  if (reinterpret_cast<uintptr_t>(map.data) % bytes != 0)
    refuse(label + ".data is not aligned to its elements of " + std::to_string(bytes) + " bytes");
  const bool channels = problem.channels_last;
  const int64_t stride = channels ? map.channel_stride : map.pixel_stride;
  if (stride != 1 && (channels ? problem.shape.channels : problem.shape.pixels) > 1)
    refuse(label + (channels ? ".channel_stride" : ".pixel_stride") + " is " + std::to_string(stride) +
           ", expected 1: problem.channels_last says which are adjacent");
}

void check_problem(const Problem& problem) {
  const Shape& s = problem.shape;
  check_size("images", s.images);
  check_size("channels", s.channels);
  check_size("pixels", s.pixels);
  check_size("reduced", s.reduced);
  check_product("images * pixels", s.images * s.pixels, 31);
  check_product("images * channels", s.images * s.channels, 35);
  check_product("images * reduced", s.images * s.reduced, 35);
  check_product("channels * reduced", s.channels * s.reduced, 35);
  check_product("images * channels * pixels", s.images * s.pixels * s.channels, 40);
  if (problem.dtype == DType::f64) refuse("dtype is f64, expected f32, bf16 or f16");
  if (!is_known(problem.squash))
    refuse("squash is " + std::to_string(static_cast<int64_t>(problem.squash)) +
           ", expected 0 for tanh, 1 for sigmoid");
  const Weights& w = problem.weights;
  check_pointer("weights.w_shrink", w.w_shrink);
  check_pointer("weights.w_expand", w.w_expand);
  check_pointer("weights.v_shrink", w.v_shrink);
  check_pointer("weights.v_collapse", w.v_collapse);
  check_pointer("weights.a", w.a);
  check_pointer("weights.m", w.m);
}

void check_forward(const Problem& problem, const Forward& f) {
  check_problem(problem);
  check_map(problem, "x", f.x);
  if (f.residual.data) check_map(problem, "residual", f.residual);
  check_map(problem, "out", f.out);
  check_pointer("stats", f.stats);
}

void check_backward(const Problem& problem, const Backward& b) {
  check_problem(problem);
  check_map(problem, "x", b.x);
  check_map(problem, "grad_out", b.grad_out);
  if (b.out.data) {
    check_map(problem, "out", b.out);
    check_map(problem, "grad_residual", b.grad_residual);
  }
  if (b.grad_x.data) check_map(problem, "grad_x", b.grad_x);
  check_pointer("stats", b.stats);
  check_pointer("relu_mask", b.relu_mask);
  const WeightGrads& g = b.grads;
  if (!g.w_shrink) return;
  check_pointer("grads.w_expand", g.w_expand);
  check_pointer("grads.v_shrink", g.v_shrink);
  check_pointer("grads.v_collapse", g.v_collapse);
  check_pointer("grads.a", g.a);
  check_pointer("grads.m", g.m);
}

void check_execution(const Execution& execution) {
  check_pointer("workspace", execution.workspace);
  if (reinterpret_cast<uintptr_t>(execution.workspace) % 256 != 0) refuse("workspace is not aligned to 256 bytes");
}

// Hands out pieces of the workspace. With a null pointer it only adds up their sizes.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}
  void* take(int64_t bytes) {
    char* piece = memory_ ? memory_ + used_ : nullptr;
    used_ += ceil_div(bytes, 256) * 256;
    return piece;
  }
  float* take_floats(int64_t count) { return static_cast<float*>(take(count * 4)); }
  int64_t bytes() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

struct ForwardMemory {
  void *packed_shrink, *scratch;
  float* gates;

  ForwardMemory(const Problem& problem, const Forward& f, Workspace& workspace) {
    packed_shrink = workspace.take(packed_shrink_bytes(problem));
    gates = workspace.take_floats(problem.shape.images * 2 * problem.shape.channels);
    const int64_t gathering = gather_scratch(problem), scaling = scale_scratch(problem, f);
    scratch = workspace.take(larger(gathering, scaling));
  }
};

struct BackwardMemory {
  void *packed_local, *scratch;
  float *gates, *g, *d_gates, *ds, *dg, *dz, *dp;

  BackwardMemory(const Problem& problem, const Backward& b, Workspace& workspace) {
    const Shape& s = problem.shape;
    packed_local = workspace.take(b.grad_x.data ? packed_local_bytes(problem) : 0);
    gates = workspace.take_floats(s.images * 2 * s.channels);
    g = workspace.take_floats(s.images * s.channels);
    d_gates = workspace.take_floats(s.images * 2 * s.channels);
    ds = workspace.take_floats(s.images * s.pixels);
    dg = workspace.take_floats(s.images * s.channels);
    dz = workspace.take_floats(s.images * s.reduced);
    dp = workspace.take_floats(s.images * s.channels);
    int64_t most = larger(scale_backward_scratch(problem, b), gate_backward_scratch(problem));
    if (b.grads.w_shrink) most = larger(most, larger(global_grads_scratch(problem), local_grads_scratch(problem)));
    scratch = workspace.take(most);
  }
};

}  // namespace

int64_t forward_workspace(const Problem& problem, const Forward& f) {
  check_forward(problem, f);
  Workspace workspace(nullptr);
  ForwardMemory(problem, f, workspace);
  return workspace.bytes();
}

void forward(const Problem& problem, const Forward& f, const Execution& execution) {
  check_forward(problem, f);
  check_execution(execution);
  Workspace workspace(execution.workspace);
  const ForwardMemory memory(problem, f, workspace);
  const Execution stage{execution.stream, memory.scratch, execution.tf32};
  pack_shrink(problem, memory.packed_shrink, stage);
  gather(problem, f, memory.packed_shrink, stage);
  gate(problem, f.stats, memory.gates, stage);
  scale(problem, f, memory.gates, stage);
}

int64_t backward_workspace(const Problem& problem, const Backward& b) {
  check_backward(problem, b);
  Workspace workspace(nullptr);
  BackwardMemory(problem, b, workspace);
  return workspace.bytes();
}

void backward(const Problem& problem, const Backward& b, const Execution& execution) {
  check_backward(problem, b);
  check_execution(execution);
  const bool need_input = b.grad_x.data != nullptr, need_weights = b.grads.w_shrink != nullptr;
  Workspace workspace(execution.workspace);
  const BackwardMemory memory(problem, b, workspace);
  const Execution stage{execution.stream, memory.scratch, execution.tf32};
  if (need_input) pack_local(problem, memory.packed_local, stage);
  expand(problem, b.stats, memory.gates, memory.g, stage);
  scale_backward(problem, b, memory.gates, memory.d_gates, memory.ds, stage);
  if (need_input || need_weights)
    gate_backward(problem, b.stats, memory.d_gates, memory.dg, memory.dz, memory.dp, stage);
  if (need_input) grad_x(problem, b, memory.packed_local, memory.gates, memory.ds, memory.dp, stage);
  if (!need_weights) return;
  global_grads(problem, b, memory.g, memory.d_gates, memory.dg, memory.dz, stage);
  local_grads(problem, b, memory.ds, stage);
}

const char* architectures() { return GALA_CUDA_ARCHITECTURES; }

}  // namespace gala::cuda

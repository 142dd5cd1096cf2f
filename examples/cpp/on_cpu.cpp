// Forward and backward on the CPU in double, on the calling thread.
#include "block.h"

namespace {

gala::FeatureMap map_of(Tensor& t) { return {t.data(), shape.channels * shape.pixels, shape.pixels, 1}; }

// A program with a thread pool gives its tasks to that.
void one_after_another(int64_t tasks, void (*body)(void*, int64_t), void* context) {
  for (int64_t task = 0; task < tasks; ++task) body(context, task);
}

}  // namespace

int main() {
  std::mt19937 generator(1);
  Block block = random_block(generator);
  Tensor grad_out = normal(block.x.size(), generator);

  gala::Problem problem{};
  problem.shape = shape;
  problem.dtype = gala::DType::f64;
  problem.squash = gala::Squash::tanh;
  problem.channels_last = false;
  problem.weights = {block.w_shrink.data(),   block.w_expand.data(), block.v_shrink.data(),
                     block.v_collapse.data(), block.a.data(),        block.m.data()};  // and no biases
  problem.parallel = {one_after_another, 1};

  Tensor out(block.x.size()), stats(stats_size);
  std::vector<int32_t> relu_mask(relu_mask_size);
  gala::Forward forward{};
  forward.x = map_of(block.x);
  forward.out = map_of(out);
  forward.stats = stats.data();
  forward.relu_mask = relu_mask.data();
  gala::cpu::forward(problem, forward);

  Block grads = block;  // every element is written
  gala::Backward backward{};
  backward.x = forward.x;
  backward.grad_out = map_of(grad_out);
  backward.stats = forward.stats;
  backward.relu_mask = forward.relu_mask;
  backward.grad_x = map_of(grads.x);
  backward.grads = {grads.w_shrink.data(),   grads.w_expand.data(), grads.v_shrink.data(),
                    grads.v_collapse.data(), grads.a.data(),        grads.m.data()};
  gala::cpu::backward(problem, backward);

  std::printf("on the CPU, %s\n", gala::cpu::isa());
  bool good = close("out", out, formula(block), 1e-13);
  const char* names[] = {"x", "w_shrink", "w_expand", "v_shrink", "v_collapse", "a", "m"};
  for (int i = 0; i < 7; ++i)
    good &= close(names[i], *grads.tensors()[i], difference(block, *block.tensors()[i], grad_out), 1e-8);
  return good ? 0 : 1;
}

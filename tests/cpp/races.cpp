// Runs the kernels, or a sample with a fault, under ThreadSanitizer, which ends the program with an error if there is a
// race. The shim itself is compiled without it and linked first, so that its own data are not watched.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/gala.h"
#include "shim/memory.h"
#include "shim/scheduler.h"
#include "shim/warp.h"

extern "C" const char* sample_product(const void* x, const void* w, float* out, float* sums, int rows, int depth,
                                      int fault);
extern "C" const char* sample_sum(const float* x, float* out, int values, int between_blocks);

using namespace gala;

namespace {

std::mt19937 generator;
std::vector<void*> buffers;

void* buffer(int64_t bytes) {
  buffers.push_back(shim::allocate(static_cast<size_t>(bytes), 256, 0));
  return buffers.back();
}

void release_all() {
  for (void* b : buffers) shim::release(b);
  buffers.clear();
}

void* values(int64_t count, DType dtype) {
  std::normal_distribution<float> normal;
  void* to = buffer(count * (dtype == DType::f32 ? 4 : 2));
  for (int64_t i = 0; i < count; ++i) {
    const float value = normal(generator);
    if (dtype == DType::f32) static_cast<float*>(to)[i] = value;
    if (dtype == DType::bf16) static_cast<uint16_t*>(to)[i] = shim::to_bf16(value);
    if (dtype == DType::f16) static_cast<uint16_t*>(to)[i] = shim::to_f16(value);
  }
  return to;
}

FeatureMap feature_map(const Problem& p, void* data) {
  const auto [n, c, pixels, r] = p.shape;
  if (p.channels_last) return {data, c * pixels, 1, c};
  return {data, c * pixels, pixels, 1};
}

void run(const Shape& shape, DType dtype, bool channels_last) {
  const auto [n, c, pixels, r] = shape;
  const int64_t elements = n * c * pixels, element = dtype == DType::f32 ? 4 : 2, stats = n * (pixels + c + r);
  auto weight = [](int64_t count) { return values(count, DType::f32); };
  Problem p{shape, dtype, Squash::tanh, channels_last, {}, {}};
  p.weights = {weight(r * c), weight(c * r), weight(r * c), weight(r), weight(c),
               weight(c),     weight(r),     weight(c),     weight(r), weight(1)};
  auto map = [&](void* data) { return feature_map(p, data); };

  Forward f{map(values(elements, dtype)),
            map(values(elements, dtype)),
            map(buffer(elements * element)),
            nullptr,
            buffer(stats * 4),
            nullptr};
  f.map = buffer(n * pixels * 4);
  f.relu_mask = static_cast<int32_t*>(buffer(n * pixels * ((r + 31) / 32) * 4));
  cuda::forward(p, f, {nullptr, buffer(cuda::forward_workspace(p, f)), false});

  Backward b{f.x, map(values(elements, dtype)), f.out, weight(n * pixels), f.stats, f.relu_mask, {}, {}, {}};
  b.grad_x = map(buffer(elements * element));
  b.grad_residual = map(buffer(elements * element));
  auto grad = [](int64_t count) { return buffer(count * 4); };
  b.grads = {grad(r * c), grad(c * r), grad(r * c), grad(r), grad(c), grad(c), grad(r), grad(c), grad(r), grad(1)};
  cuda::backward(p, b, {nullptr, buffer(cuda::backward_workspace(p, b)), false});
  release_all();
}

int report(const char* error) {
  if (error) std::fprintf(stderr, "%s\n", error);
  return error != nullptr;
}

}  // namespace

// races kernels <images> <channels> <pixels> <reduced> <0: f32, 1: bf16, 2: f16> <channels_last> | races product
// <fault> | races sum <between blocks>
int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  auto number = [&](int i) { return i < argc ? std::atoi(argv[i]) : 0; };
  shim::device.seed = 2;
  if (what == "kernels") {
    const DType dtype = number(6) == 0 ? DType::f32 : number(6) == 1 ? DType::bf16 : DType::f16;
    run({number(2), number(3), number(4), number(5)}, dtype, number(7));
    return 0;
  }
  constexpr int rows = 90, depth = 200;
  auto* out = static_cast<float*>(buffer(rows * 8 * 4));
  std::memset(out, 0, rows * 8 * 4);
  if (what == "product")
    return report(sample_product(values(rows * depth, DType::bf16), values(8 * depth, DType::bf16), out,
                                 static_cast<float*>(buffer(rows * 4)), rows, depth, number(2)));
  if (what == "sum") return report(sample_sum(static_cast<float*>(values(rows, DType::f32)), out, rows, number(2)));
  return report(
      "races kernels <images> <channels> <pixels> <reduced> <0: f32, 1: bf16, 2: f16> <channels_last> | races product "
      "<fault> | races sum <0 or 1>");
}

// gate: p -> z -> g -> alpha, beta, in float32. Both products have few rows, one per image, and large weights, whose
// rows lie along the sum. A warp splits the sum between its lanes. With few images it computes one output, so that many
// blocks share the reading of the weights; else it computes several images and columns at once.

#include <cmath>
#include <primitives.cuh>

#include "launchers.h"
#include "vectors.cuh"

namespace gala::cuda {

constexpr int kGateThreads = 128;

struct GateParams {
  const float* from;  // [images, depth], rows from_stride apart: p, or z, of which relu is taken
  const float *w, *bias;  // [cols, depth], [cols] or null
  int64_t from_stride;
  int images, depth, cols;
  float* z;  // [images, cols], rows from_stride apart; null where `from` is z
  const float *a, *m;  // [cols], where z is null
  float *gates, *g;  // [images, 2, cols], [images, cols] or null
};

GALA_DEVICE void store_gate(const GateParams& p, int image, int col, float sum) {
  if (image >= p.images || col >= p.cols) return;
  const float value = sum + (p.bias ? load_global(p.bias + col) : 0.0f);
  if (p.z) {
    store_global(p.z + image * p.from_stride + col, value);
    return;
  }
  const float a = load_global(p.a + col);
  float* alpha = p.gates + int64_t{image} * 2 * p.cols + col;
  store_global(alpha, a * value);
  store_global(alpha + p.cols, std::fma(load_global(p.m + col), value, a));
  if (p.g) store_global(p.g + int64_t{image} * p.cols + col, value);
}

template <int kImages, int kCols, int width>
GALA_KERNEL(kGateThreads, 4)
gate_kernel(GateParams p) {
  using Vector = Vec<float, width>;
  constexpr int kSteps = kImages == 1 ? 8 : 1;  // loaded before the first is used
  const int blocks = (p.images + kImages - 1) / kImages;  // for the same columns: they share weights in the L2 cache
  const int first = block_x() % blocks * kImages;
  const int col = (block_x() / blocks * (kGateThreads / 32) + warp()) * kCols;
  const float *from[kImages], *w[kCols];
  GALA_UNROLL
  for (int i = 0; i < kImages; ++i) from[i] = p.from + lesser(first + i, p.images - 1) * p.from_stride;
  GALA_UNROLL
  for (int j = 0; j < kCols; ++j) w[j] = p.w + int64_t{lesser(col + j, p.cols - 1)} * p.depth;
  float sums[kCols * kImages] = {};
  for (int first_k = lane() * width; first_k < p.depth; first_k += kSteps * 32 * width) {
    Vector values[kSteps][kImages] = {}, weights[kSteps][kCols] = {};
    GALA_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      const int k = first_k + step * 32 * width;
      if (k >= p.depth) continue;
      GALA_UNROLL
      for (int i = 0; i < kImages; ++i) values[step][i] = load_global(reinterpret_cast<const Vector*>(from[i] + k));
      GALA_UNROLL
      for (int j = 0; j < kCols; ++j) weights[step][j] = load_global(reinterpret_cast<const Vector*>(w[j] + k));
    }
    GALA_UNROLL
    for (int n = 0; n < kSteps * width * kImages; ++n) {
      const int i = n % kImages, v = n / kImages % width, step = n / (kImages * width);
      const float value = values[step][i].at[v], input = p.z ? value : relu(value);
      GALA_UNROLL
      for (int j = 0; j < kCols; ++j)
        sums[j * kImages + i] = std::fma(input, weights[step][j].at[v], sums[j * kImages + i]);
    }
  }
  const float sum = sum_over_lanes(sums);
  const int index = lane() * kCols * kImages / 32;
  if (lane() % (32 / (kCols * kImages)) == 0) store_gate(p, first + index % kImages, col + index / kImages, sum);
}

namespace {

template <int kImages, int kCols>
void run_as(const GateParams& p, void* stream) {
  const bool wide = p.depth % 4 == 0 && p.from_stride % 4 == 0 &&
                    (reinterpret_cast<uintptr_t>(p.from) | reinterpret_cast<uintptr_t>(p.w)) % 16 == 0;
  const int64_t blocks = ceil_div(p.images, kImages) * ceil_div(p.cols, kCols * kGateThreads / 32);
  launch("gate_kernel", wide ? gate_kernel<kImages, kCols, 4> : gate_kernel<kImages, kCols, 1>, {blocks}, kGateThreads,
         0, stream, p);
}

void run(const GateParams& p, void* stream) { p.images < 4 ? run_as<1, 1>(p, stream) : run_as<8, 4>(p, stream); }

}  // namespace

void expand(const Problem& problem, const void* stats, float* gates, float* g, const Execution& execution) {
  const Shape& s = problem.shape;
  const Weights& w = problem.weights;
  GateParams p{};
  p.from_stride = stats_width(s);
  p.from = static_cast<const float*>(stats) + s.pixels + s.channels;
  p.w = static_cast<const float*>(w.w_expand);
  p.bias = static_cast<const float*>(w.b_w_expand);
  p.images = static_cast<int>(s.images);
  p.depth = static_cast<int>(s.reduced);
  p.cols = static_cast<int>(s.channels);
  p.a = static_cast<const float*>(w.a);
  p.m = static_cast<const float*>(w.m);
  p.gates = gates;
  p.g = g;
  run(p, execution.stream);
}

void gate(const Problem& problem, void* stats, float* gates, const Execution& execution) {
  const Shape& s = problem.shape;
  GateParams p{};
  p.from_stride = stats_width(s);
  float* pooled = static_cast<float*>(stats) + s.pixels;
  p.from = pooled;
  p.w = static_cast<const float*>(problem.weights.w_shrink);
  p.bias = static_cast<const float*>(problem.weights.b_w_shrink);
  p.images = static_cast<int>(s.images);
  p.depth = static_cast<int>(s.channels);
  p.cols = static_cast<int>(s.reduced);
  p.z = pooled + s.channels;
  run(p, execution.stream);
  expand(problem, stats, gates, nullptr, execution);
}

}  // namespace gala::cuda

// gate's backward in float32: d alpha, d beta -> dg -> dz -> dp. Both products take weights whose rows lie along the
// result: a block adds up some rows of the weights for 8 images, its warps a share of the rows each.

#include <cmath>
#include <primitives.cuh>

#include "stages.h"
#include "vectors.cuh"

namespace gala::cuda {

constexpr int kWarps = 8, kImages = 8, kSlice = kWarps * 32;  // kSlice: rows of the weights between two barriers

struct CombineParams {
  int64_t first;  // image
  int images, depth, cols, splits, span;
  // the input [N, depth], which is kept: dg = a d_alpha + m d_beta, or dz = the sum of its parts where z > 0
  const float *a, *m, *d_gates;  // d_gates [N, 2, depth], or null
  const float *dz_parts, *z;  // [dz_splits, images, depth], z of row stride z_stride
  int64_t z_stride;
  int dz_splits;
  float* input;
  const float* w;  // [depth, cols]
  float* to;  // [splits, images, cols]
  float factor;  // of the result
};

// Four images' values from `image` on, of row `row` of [kSlice, kImages]: eight rows in a row lie in different banks.
GALA_DEVICE Vec<float, 4>* input_at(float* shared, int row, int image) {
  static_assert(kImages == 8);
  return reinterpret_cast<Vec<float, 4>*>(shared + row * kImages + (image ^ (row & 4)));
}

// The input of the block's images at k, into shared memory [kSlice, kImages]; the loads of all images are under way
// together.
GALA_DEVICE void stage_input(const CombineParams& p, int top, int k, bool keep, float* shared) {
  const int count = p.images - top < kImages ? p.images - top : kImages;
  float values[kImages] = {};
  if (p.d_gates) {
    const float a = load_global(p.a + k), m = load_global(p.m + k);
    const float* d_alpha = p.d_gates + (p.first + top) * 2 * p.depth + k;
    GALA_UNROLL
    for (int i = 0; i < kImages; ++i) {
      const float* from = d_alpha + int64_t{i} * 2 * p.depth;
      if (i < count) values[i] = std::fma(a, load_global(from), m * load_global(from + p.depth));
    }
  } else {
    for (int split = 0; split < p.dz_splits; ++split) {
      const float* from = p.dz_parts + (int64_t{split} * p.images + top) * p.depth + k;
      GALA_UNROLL
      for (int i = 0; i < kImages; ++i)
        if (i < count) values[i] += load_global(from + int64_t{i} * p.depth);
    }
    GALA_UNROLL
    for (int i = 0; i < kImages; ++i)
      if (i < count && load_global(p.z + (p.first + top + i) * p.z_stride + k) <= 0.0f) values[i] = 0.0f;
  }
  GALA_UNROLL
  for (int i = 0; i < kImages; ++i) {
    if (keep && i < count) store_global(p.input + (p.first + top + i) * p.depth + k, values[i]);
  }
  GALA_UNROLL
  for (int i = 0; i < kImages; i += 4)
    store_shared(input_at(shared, thread_index(), i),
                 Vec<float, 4>{{values[i], values[i + 1], values[i + 2], values[i + 3]}});
}

// The sum over the warps, in order.
template <int width>
GALA_DEVICE void add_warps(const CombineParams& p, const float (&sums)[kImages][width], int top, int tile, int split) {
  constexpr int kCols = 32 * width;
  float* shared = shared_memory<float>();  // [kWarps, kImages, width, 32]
  block_barrier();
  GALA_UNROLL
  for (int i = 0; i < kImages * width; ++i)
    store_shared(shared + (warp() * kImages + i / width) * kCols + crossed_place<width>(i % width, lane(), 32),
                 sums[i / width][i % width]);
  block_barrier();
  for (int i = thread_index(); i < kImages * kCols; i += kWarps * 32) {
    const int image = top + i / kCols, col = tile * kCols + i % kCols;
    if (image >= p.images || col >= p.cols) continue;
    const float* from = shared + i / kCols * kCols + crossed_place<width>(i % width, i % kCols / width, 32);
    float total = 0.0f;
    for (int k = 0; k < kWarps; ++k) total += load_shared(from + k * kImages * kCols);
    store_global(p.to + (int64_t{split} * p.images + image) * p.cols + col, total * p.factor);
  }
}

template <int width>
GALA_DEVICE void add_outer(float* inputs, int row, const Vec<float, width>& weights, float (&sums)[kImages][width]) {
  GALA_UNROLL
  for (int first = 0; first < kImages; first += 4) {
    const auto values = load_shared(input_at(inputs, row, first));
    GALA_UNROLL
    for (int n = 0; n < 4 * width; ++n) {
      float& sum = sums[first + n / width][n % width];
      sum = std::fma(values.at[n / width], weights.at[n % width], sum);
    }
  }
}

template <int width>
GALA_KERNEL(kWarps * 32, 2)
combine_kernel(CombineParams p) {
  using Vector = Vec<float, width>;
  constexpr int kCols = 32 * width, kSteps = 8;  // kSteps: rows whose loads are under way together
  float* shared = shared_memory<float>();  // [kSlice, kImages], then the warps' sums
  const int tiles = (p.cols + kCols - 1) / kCols, tile = block_x() % tiles, split = block_x() / tiles % p.splits;
  const int top = block_x() / (tiles * p.splits) * kImages;  // the first of the block's images, of the chunk's
  const int col = tile * kCols + lane() * width;
  const int begin = split * p.span, end = begin + p.span < p.depth ? begin + p.span : p.depth;
  float sums[kImages][width] = {};
  for (int slice = begin; slice < end; slice += kSlice) {
    const int left = end - slice < kSlice ? end - slice : kSlice;
    block_barrier();
    if (thread_index() < left) stage_input(p, top, slice + thread_index(), tile == 0, shared);
    block_barrier();
    for (int first = warp(); first < left; first += kWarps * kSteps) {
      Vector weights[kSteps] = {};
      GALA_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        const int k = first + step * kWarps;
        if (k < left && col < p.cols)
          weights[step] = load_global(reinterpret_cast<const Vector*>(p.w + int64_t{slice + k} * p.cols + col));
      }
      GALA_UNROLL
      for (int step = 0; step < kSteps; ++step) {
        const int k = first + step * kWarps;
        if (k < left) add_outer<width>(shared, k, weights[step], sums);
      }
    }
  }
  add_warps(p, sums, top, tile, split);
}

namespace {

struct Splits {
  int64_t count, span;
};

// Of the sum over C, so that few images keep many blocks busy; by the shape of the whole batch alone.
Splits splits_of(const Shape& s) {
  constexpr int64_t kSpan = 64;
  const int64_t blocks = ceil_div(s.reduced, 128) * ceil_div(s.images, kImages);
  const int64_t most = ceil_div(s.channels, kSpan), wanted = ceil_div(512, blocks);
  const int64_t span = ceil_div(ceil_div(s.channels, wanted < most ? wanted : most), kSpan) * kSpan;
  return {ceil_div(s.channels, span), span};
}

void combine(const CombineParams& p, const char* name, void* stream) {
  const bool wide = p.cols % 4 == 0 && reinterpret_cast<uintptr_t>(p.w) % 16 == 0;
  const int width = wide ? 4 : 1;
  const int64_t blocks = ceil_div(p.cols, 32 * width) * p.splits * ceil_div(p.images, kImages);
  launch(name, wide ? combine_kernel<4> : combine_kernel<1>, {blocks}, kWarps * 32, kWarps * kImages * 32 * width * 4,
         stream, p);
}

}  // namespace

int64_t gate_backward_scratch(const Problem& problem, Images images) {
  return splits_of(problem.shape).count * images.count * problem.shape.reduced * 4;
}

void gate_backward(const Problem& problem, const void* stats, Images images, const float* d_gates, float* dg, float* dz,
                   float* dp, const Execution& execution) {
  const Shape& s = problem.shape;
  const Weights& w = problem.weights;
  const Splits splits = splits_of(s);
  CombineParams hidden{};
  hidden.first = images.first;
  hidden.images = static_cast<int>(images.count);
  hidden.depth = static_cast<int>(s.channels);
  hidden.cols = static_cast<int>(s.reduced);
  hidden.splits = static_cast<int>(splits.count);
  hidden.span = static_cast<int>(splits.span);
  hidden.a = static_cast<const float*>(w.a);
  hidden.m = static_cast<const float*>(w.m);
  hidden.d_gates = d_gates;
  hidden.input = dg;
  hidden.w = static_cast<const float*>(w.w_expand);
  hidden.to = static_cast<float*>(execution.workspace);
  hidden.factor = 1.0f;
  combine(hidden, "combine_kernel of dz", execution.stream);

  CombineParams pooled{};
  pooled.first = images.first;
  pooled.images = hidden.images;
  pooled.depth = hidden.cols;
  pooled.cols = hidden.depth;
  pooled.splits = 1;
  pooled.span = pooled.depth;
  pooled.dz_parts = hidden.to;
  pooled.dz_splits = hidden.splits;
  pooled.z = static_cast<const float*>(stats) + s.pixels + s.channels;
  pooled.z_stride = stats_width(s);
  pooled.input = dz;
  pooled.w = static_cast<const float*>(w.w_shrink);
  pooled.to = dp + images.first * s.channels;
  pooled.factor = 1.0f / static_cast<float>(s.pixels);
  combine(pooled, "combine_kernel of dp", execution.stream);
}

}  // namespace gala::cuda

// gate's backward: d alpha, d beta -> dg -> dz -> dp, in float32. Both products take weights whose rows lie along the
// result: a block adds up some rows of the weights for 8 images, and each of its warps takes a share of the rows.

#include <cmath>
#include <primitives.cuh>

#include "launchers.h"
#include "vectors.cuh"

namespace gala::cuda {

constexpr int kWarps = 8, kImages = 8, kSlice = kWarps * 32;  // kSlice: rows of the weights between two barriers

struct CombineParams {
  int images, depth, cols, splits, span;
  // the input: dg = a d_alpha + m d_beta, or where d_gates is null dz = the sum of dz_parts where z > 0, else 0
  const float *a, *m, *d_gates;  // [depth], [depth], [N, 2, depth]
  const float *dz_parts, *z;  // [dz_splits, images, depth]; [N, depth], rows z_stride apart
  int64_t z_stride;
  int dz_splits;
  float* input;  // [N, depth]: the input is written there too
  const float* w;  // [depth, cols]
  float* to;  // [splits, images, cols]
  float factor;  // the result is multiplied by it
};

// Where the values of four images from `image` on lie, in row `row` of [kSlice, kImages] in shared memory; the places
// of eight rows that follow each other are in different banks.
GALA_DEVICE Vec<float, 4>* input_at(float* shared, int row, int image) {
  static_assert(kImages == 8);
  return reinterpret_cast<Vec<float, 4>*>(shared + row * kImages + (image ^ (row & 4)));
}

// Computes the input of the block's images at k and puts it into shared memory [kSlice, kImages]; with `keep`, into
// global memory too. All images are loaded before the first is used.
GALA_DEVICE void stage_input(const CombineParams& p, int top, int k, bool keep, float* shared) {
  const int count = p.images - top < kImages ? p.images - top : kImages;
  float values[kImages] = {};
  if (p.d_gates) {
    const float a = load_global(p.a + k), m = load_global(p.m + k);
    const float* d_alpha = p.d_gates + int64_t{top} * 2 * p.depth + k;
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
      if (i < count && load_global(p.z + (int64_t{top} + i) * p.z_stride + k) <= 0.0f) values[i] = 0.0f;
  }
  GALA_UNROLL
  for (int i = 0; i < kImages; ++i) {
    if (keep && i < count) store_global(p.input + (int64_t{top} + i) * p.depth + k, values[i]);
  }
  GALA_UNROLL
  for (int i = 0; i < kImages; i += 4)
    store_shared(input_at(shared, thread_index(), i),
                 Vec<float, 4>{{values[i], values[i + 1], values[i + 2], values[i + 3]}});
}

// Adds the warps' sums in order and writes the results.
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

// sums [kImages, width] += the input in row `row` of shared memory times these weights.
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
  constexpr int kCols = 32 * width, kSteps = 8;  // kSteps: rows loaded before the first is used
  float* shared = shared_memory<float>();  // [kSlice, kImages], then the warps' sums
  const int tiles = (p.cols + kCols - 1) / kCols, tile = block_x() % tiles, split = block_x() / tiles % p.splits;
  const int top = block_x() / (tiles * p.splits) * kImages;  // the first of the block's images
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

// Into how many splits of which span the sum over C is divided, so that few images keep many blocks busy. It depends on
// the shape alone, since it decides in which order elements are summed.
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

int64_t gate_backward_scratch(const Problem& problem) {
  return splits_of(problem.shape).count * problem.shape.images * problem.shape.reduced * 4;
}

void gate_backward(const Problem& problem, const void* stats, const float* d_gates, float* dg, float* dz, float* dp,
                   const Execution& execution) {
  const Shape& s = problem.shape;
  const Weights& w = problem.weights;
  const Splits splits = splits_of(s);
  CombineParams from_gates{};
  from_gates.images = static_cast<int>(s.images);
  from_gates.depth = static_cast<int>(s.channels);
  from_gates.cols = static_cast<int>(s.reduced);
  from_gates.splits = static_cast<int>(splits.count);
  from_gates.span = static_cast<int>(splits.span);
  from_gates.a = static_cast<const float*>(w.a);
  from_gates.m = static_cast<const float*>(w.m);
  from_gates.d_gates = d_gates;
  from_gates.input = dg;
  from_gates.w = static_cast<const float*>(w.w_expand);
  from_gates.to = static_cast<float*>(execution.workspace);
  from_gates.factor = 1.0f;
  combine(from_gates, "combine_kernel of dz", execution.stream);

  CombineParams from_dz{};
  from_dz.images = from_gates.images;
  from_dz.depth = from_gates.cols;
  from_dz.cols = from_gates.depth;
  from_dz.splits = 1;
  from_dz.span = from_dz.depth;
  from_dz.dz_parts = from_gates.to;
  from_dz.dz_splits = from_gates.splits;
  from_dz.z = static_cast<const float*>(stats) + s.pixels + s.channels;
  from_dz.z_stride = stats_width(s);
  from_dz.input = dz;
  from_dz.w = static_cast<const float*>(w.w_shrink);
  from_dz.to = dp;
  from_dz.factor = 1.0f / static_cast<float>(s.pixels);
  combine(from_dz, "combine_kernel of dp", execution.stream);
}

}  // namespace gala::cuda

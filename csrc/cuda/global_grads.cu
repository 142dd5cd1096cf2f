// The gradients of the global path's weights and biases, summed over all images in float32: of w_expand dg^T relu(z),
// of w_shrink dz^T p, of a the sum of g d alpha + d beta, of m the sum of g d beta, of the biases the sums of dg and
// dz.

#include <cmath>
#include <primitives.cuh>

#include "launchers.h"
#include "vectors.cuh"

namespace gala::cuda {

constexpr int kThreads = 256, kTile = 64, kDepth = 16,
              kSide = 4;  // a thread has [kSide, kSide] of a tile [kTile, kTile]
constexpr int kBeside = kTile / kSide;  // threads along a side of the tile

// to [splits, rows, cols] = left^T right of left [images, rows] and right [images, cols]
struct Outer {
  const float *left, *right;
  int64_t left_stride, right_stride;
  int rows, cols;
  bool relu;  // whether relu(right) is multiplied
  float* to;
};

struct OuterParams {
  Outer first, second;
  int first_blocks;
  int images, splits, span;
};

constexpr int kEach = kDepth * kTile / kThreads;  // elements of a slice for each thread

// Loads a thread's elements of a slice of `from` [images, count]: kDepth images from `first` on and kTile columns from
// `side` on; zeros from image `end` on.
GALA_DEVICE void load_slice(const float* from, int64_t stride, int first, int end, int side, int count,
                            float (&values)[kEach]) {
  GALA_UNROLL
  for (int i = 0; i < kEach; ++i) {
    const int at = i * kThreads + thread_index(), image = first + at / kTile, col = side + at % kTile;
    values[i] = image < end && col < count ? load_global(from + image * stride + col) : 0.0f;
  }
}

GALA_KERNEL(kThreads, 2)
outer_kernel(OuterParams p) {
  const bool is_first = block_x() < p.first_blocks;
  const Outer o = is_first ? p.first : p.second;
  const int index = block_x() - (is_first ? 0 : p.first_blocks), split = index % p.splits;
  const int tiles = (o.cols + kTile - 1) / kTile;
  const int top = index / p.splits / tiles * kTile, side = index / p.splits % tiles * kTile;
  const int begin = split * p.span, end = begin + p.span < p.images ? begin + p.span : p.images;
  float* left = shared_memory<float>();  // [kDepth, kTile]
  float* right = left + kDepth * kTile;
  const int row = thread_index() / kBeside * kSide, col = thread_index() % kBeside * kSide;
  float left_values[kEach], right_values[kEach], sums[kSide][kSide] = {};
  load_slice(o.left, o.left_stride, begin, end, top, o.rows, left_values);
  load_slice(o.right, o.right_stride, begin, end, side, o.cols, right_values);
  for (int first = begin; first < end; first += kDepth) {
    block_barrier();
    GALA_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int at = i * kThreads + thread_index();
      store_shared(left + at, left_values[i]);
      store_shared(right + at, o.relu ? relu(right_values[i]) : right_values[i]);
    }
    block_barrier();
    load_slice(o.left, o.left_stride, first + kDepth, end, top, o.rows, left_values);
    load_slice(o.right, o.right_stride, first + kDepth, end, side, o.cols, right_values);
    GALA_UNROLL
    for (int k = 0; k < kDepth; ++k) {
      const auto a = load_shared(reinterpret_cast<const Vec<float, kSide>*>(left + k * kTile + row));
      const auto b = load_shared(reinterpret_cast<const Vec<float, kSide>*>(right + k * kTile + col));
      GALA_UNROLL
      for (int i = 0; i < kSide * kSide; ++i) {
        float& sum = sums[i / kSide][i % kSide];
        sum = std::fma(a.at[i / kSide], b.at[i % kSide], sum);
      }
    }
  }
  GALA_UNROLL
  for (int i = 0; i < kSide * kSide; ++i) {
    const int r = top + row + i / kSide, c = side + col + i % kSide;
    if (r < o.rows && c < o.cols)
      store_global(o.to + (int64_t{split} * o.rows + r) * o.cols + c, sums[i / kSide][i % kSide]);
  }
}

struct ColumnParams {
  int images, channels, reduced, channel_blocks;
  const float *g, *d_gates, *dg, *dz;  // of all images
  float *a, *m, *b_w_expand, *b_w_shrink;  // the biases' may be null
};

// A block sums 32 columns over the images, of which each warp takes every eighth; the warps' sums are added in order.
GALA_KERNEL(kThreads, 4)
column_kernel(ColumnParams p) {
  constexpr int kWarps = kThreads / 32;
  const bool of_channels = block_x() < p.channel_blocks;
  const int count = of_channels ? p.channels : p.reduced;
  const int col = (block_x() - (of_channels ? 0 : p.channel_blocks)) * 32 + lane();
  float sums[3] = {};  // a, m and the bias
  for (int image = warp(); image < p.images && col < count; image += kWarps) {
    const int64_t at = int64_t{image} * count + col;
    sums[2] += load_global((of_channels ? p.dg : p.dz) + at);
    if (!of_channels) continue;
    const float g = load_global(p.g + at);
    const float* d_alpha = p.d_gates + int64_t{image} * 2 * count + col;
    const float d_beta = load_global(d_alpha + count);
    sums[0] += std::fma(g, load_global(d_alpha), d_beta);
    sums[1] = std::fma(g, d_beta, sums[1]);
  }
  float* shared = shared_memory<float>();  // [3, kWarps, 32]
  GALA_UNROLL
  for (int i = 0; i < 3; ++i) store_shared(shared + i * kThreads + thread_index(), sums[i]);
  block_barrier();
  if (warp() >= 3 || col >= count) return;
  float* bias = of_channels ? p.b_w_expand : p.b_w_shrink;
  float* to = warp() == 2 ? bias : !of_channels ? nullptr : warp() == 0 ? p.a : p.m;
  if (!to) return;
  float total = 0.0f;
  GALA_UNROLL
  for (int i = 0; i < kWarps; ++i) total += load_shared(shared + warp() * kThreads + i * 32 + lane());
  store_global(to + col, total);
}

namespace {

struct Splits {
  int64_t tiles, count, span;  // tiles of one product; splits of the images, and how many images a split has
};

Splits splits_of(const Shape& s) {
  const int64_t tiles = ceil_div(s.channels, kTile) * ceil_div(s.reduced, kTile);
  const int64_t wanted = ceil_div(64, tiles), most = ceil_div(s.images, 4 * kDepth);
  const int64_t span = ceil_div(s.images, wanted < most ? wanted : most);
  return {tiles, ceil_div(s.images, span), span};
}

}  // namespace

int64_t global_grads_scratch(const Problem& problem) {
  const Shape& s = problem.shape;
  const int64_t splits = splits_of(s).count;
  return splits > 1 ? splits * 2 * s.channels * s.reduced * 4 : 0;
}

void global_grads(const Problem& problem, const Backward& b, const float* g, const float* d_gates, const float* dg,
                  const float* dz, const Execution& execution) {
  const Shape& s = problem.shape;
  const WeightGrads& grads = b.grads;
  const Splits splits = splits_of(s);
  const int channels = static_cast<int>(s.channels), reduced = static_cast<int>(s.reduced);
  const int64_t size = s.channels * s.reduced, width = stats_width(s);
  const float* p = static_cast<const float*>(b.stats) + s.pixels;
  float *w_expand = static_cast<float*>(grads.w_expand), *w_shrink = static_cast<float*>(grads.w_shrink);
  float* scratch = static_cast<float*>(execution.workspace);
  const bool split = splits.count > 1;

  OuterParams outer{};
  outer.first = {dg, p + channels, s.channels, width, channels, reduced, true, split ? scratch : w_expand};
  outer.second = {dz, p, s.reduced, width, reduced, channels, false, split ? scratch + splits.count * size : w_shrink};
  outer.first_blocks = static_cast<int>(splits.tiles * splits.count);
  outer.images = static_cast<int>(s.images);
  outer.splits = static_cast<int>(splits.count);
  outer.span = static_cast<int>(splits.span);
  launch("outer_kernel", outer_kernel, {2 * splits.tiles * splits.count}, kThreads, 2 * kDepth * kTile * 4,
         execution.stream, outer);
  const int64_t rows = split ? size : 0;
  sum_parts({outer.first.to, w_expand, rows, splits.count}, {outer.second.to, w_shrink, rows, splits.count}, execution);

  const int64_t blocks = ceil_div(channels, 32);
  const ColumnParams columns{outer.images,
                             channels,
                             reduced,
                             static_cast<int>(blocks),
                             g,
                             d_gates,
                             dg,
                             dz,
                             static_cast<float*>(grads.a),
                             static_cast<float*>(grads.m),
                             static_cast<float*>(grads.b_w_expand),
                             static_cast<float*>(grads.b_w_shrink)};
  launch("column_kernel", column_kernel, {blocks + ceil_div(reduced, 32)}, kThreads, 3 * kThreads * 4, execution.stream,
         columns);
}

}  // namespace gala::cuda

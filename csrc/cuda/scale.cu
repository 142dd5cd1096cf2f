// scale: out = x * squash(alpha + beta s), with a residual relu(out + residual), and the map.

#include <cmath>
#include <primitives.cuh>

#include "launchers.h"
#include "row_iterator.cuh"
#include "squash.cuh"
#include "vectors.cuh"

namespace gala::cuda {

struct ScaleParams {
  RowTiling tiling;
  int last_block;  // blocks start with the last part of x, which gather read last and which is in the L2 cache
  RowMap x, residual, out;  // residual.data may be null
  const float* gates;  // [images, 2, C]
  const float* stats;
  int64_t stats_width;
  float* map_parts;  // [tiles or shares, images, HW], or null
  Squash squash;
};

template <class T, int width>
GALA_DEVICE Packed<T, width> scaled(const Packed<T, width>& x, const float (&attention)[width],
                                    const Packed<T, width>& residual, bool add) {
  float value[width];
  unpack<T>(x, value);
  GALA_UNROLL
  for (int i = 0; i < width; ++i) value[i] *= attention[i];
  if (add) {
    float added[width];
    unpack<T>(residual, added);
    GALA_UNROLL
    for (int i = 0; i < width; ++i) value[i] = relu(value[i] + added[i]);
  }
  return pack<T>(value);
}

// With channels_last returns the sum of the thread's squares; else adds each to the sum over the rows so far.
template <int width, bool channels>
GALA_DEVICE float add_squares(const float (&attention)[width], float (&squares)[width]) {
  float sum = 0.0f;
  GALA_UNROLL
  for (int i = 0; i < width; ++i) {
    float& to = channels ? sum : squares[i];
    to = std::fma(attention[i], attention[i], to);
  }
  return sum;
}

template <class T, int width, bool channels>
GALA_KERNEL(kRowThreads, 5)
scale_kernel(ScaleParams p) {
  constexpr int kRows = kRowsInFlight<T, width>;
  const ThreadPosition here(p.tiling, p.last_block - block_x(), width, kRows);
  const Gates<width, channels> gates(p.gates, p.stats + here.image * p.stats_width, p.tiling, here);
  const int64_t part = (channels ? here.tile : here.share) * p.tiling.images + here.image;
  float* map = p.map_parts ? p.map_parts + part * p.tiling.pixels : nullptr;
  const bool add = p.residual.data != nullptr;
  RowIterator<T, width> x(p.x, here), residual(p.residual, here), out(p.out, here);
  float squares[width] = {};

  const auto take = [&]<int rows>(int row, int first) {
    float square[rows] = {};
    if (here.inside && row < here.end) {
      Packed<T, width> from[rows], added[rows] = {};
      float row_alpha[rows], row_factor[rows];
      GALA_UNROLL
      for (int k = 0; k < rows; ++k) {
        from[k] = load_streaming(x.at(first + k));
        if (add) added[k] = load_streaming(residual.at(first + k));
        row_alpha[k] = gates.row_alpha(row + k);
        row_factor[k] = gates.row_factor(row + k);
      }
      GALA_UNROLL
      for (int k = 0; k < rows; ++k) {
        float attention[width];
        gates.arguments(row_alpha[k], row_factor[k], attention);
        squash_all<T>(attention, p.squash);
        store_global(out.at(first + k), scaled<T>(from[k], attention, added[k], add));
        if (map) square[k] = add_squares<width, channels>(attention, squares);
      }
    }
    GALA_UNROLL
    for (int k = 0; channels && map && k < rows; ++k) {
      const float sum = sum_over_group(square[k], p.tiling.group_size);
      if (here.leader && row + k < here.end) store_global(map + row + k, sum);
    }
  };
  for_each_row<kRows>(here, take, x, residual, out);
  if (!channels && map) sum_groups(squares, p.tiling, here, map);
}

namespace {

int width_of(const Problem& problem, const Forward& f) {
  const FeatureMap maps[] = {f.x, f.out, f.residual.data ? f.residual : f.x};
  return vector_width(problem, maps);
}

}  // namespace

int64_t scale_scratch(const Problem& problem, const Forward& f) {
  if (!f.map) return 0;
  const RowTiling tiling = row_tiling(problem, width_of(problem, f));
  return (problem.channels_last ? tiling.tiles : tiling.shares) * tiling.images * tiling.pixels * 4;
}

void scale(const Problem& problem, const Forward& f, const float* gates, const Execution& execution) {
  const Shape& s = problem.shape;
  const int width = width_of(problem, f);
  ScaleParams p{};
  p.tiling = row_tiling(problem, width);
  p.last_block = static_cast<int>(blocks(p.tiling) - 1);
  p.x = row_map(problem, f.x);
  p.residual = row_map(problem, f.residual);
  p.out = row_map(problem, f.out);
  p.gates = gates;
  p.stats_width = stats_width(s);
  p.stats = static_cast<const float*>(f.stats);
  p.map_parts = f.map ? static_cast<float*>(execution.workspace) : nullptr;
  p.squash = problem.squash;
  with_row_kernel(problem, width, [&]<class T, int width, bool channels>() {
    launch("scale_kernel", scale_kernel<T, width, channels>, {blocks(p.tiling)}, kRowThreads,
           f.map && !channels ? kGroupSumBytes<width> : 0, execution.stream, p);
  });
  if (!f.map) return;
  const int64_t rows = s.images * s.pixels, parts = problem.channels_last ? p.tiling.tiles : p.tiling.shares;
  sum_parts({p.map_parts, static_cast<float*>(f.map), rows, parts, true}, {}, execution);
}

}  // namespace gala::cuda

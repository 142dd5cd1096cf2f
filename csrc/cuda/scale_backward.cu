// scale's backward: with d the gradient of x A + residual, which is the residual's gradient too, it computes
// e = (d x + map_factor A) squash'(A) and e's sums d alpha, d beta and ds. x and grad_out are read once. A warp sums
// along the lanes and a block along the rows; the parts of these sums are added in order.

#include <cmath>
#include <primitives.cuh>

#include "launchers.h"
#include "row_iterator.cuh"
#include "squash.cuh"
#include "vectors.cuh"

namespace gala::cuda {

struct ScaleBackwardParams {
  RowTiling tiling;
  RowMap x, grad_out, out, grad_residual;  // out and grad_residual with a residual only
  const float* gates;  // [images, 2, C]
  const float* stats;
  int64_t stats_width;
  const float* map_factor;  // [images, HW], or null
  float* d_gates;  // [shares with channels_last, else tiles; images, 2, C]
  float* ds;  // [tiles with channels_last, else shares; images, HW]
  Squash squash;
};

// A thread's elements of one row of x, grad_out and out, and the row's parts of the gates and of the map's gradient.
template <class T, int width>
struct Row {
  Packed<T, width> x = {}, grad = {}, out = {};
  float alpha = 0.0f, factor = 0.0f, map_factor = 0.0f;
};

// Sets d, which is grad_out, to 0 where out is not positive, and writes it as the residual's gradient.
template <class T, int width>
GALA_DEVICE void through_relu(const Packed<T, width>& out, float (&d)[width], Packed<T, width>* grad_residual) {
  float value[width];
  unpack<T>(out, value);
  GALA_UNROLL
  for (int i = 0; i < width; ++i) d[i] = value[i] <= 0.0f ? 0.0f : d[i];
  store_global(grad_residual, pack<T>(d));
}

// Sums over the rows for each of a thread's elements along the lanes: of e, and of e times the row's factor.
template <int width>
struct RowSums {
  float plain[width] = {}, weighted[width] = {};
};

template <class T, int width, bool channels>
GALA_DEVICE void add_row(const Gates<width, channels>& gates, const Row<T, width>& row, const float (&d)[width],
                         const float (&lane_map)[width], Squash squash, RowSums<width>& over_rows, float& plain,
                         float& weighted) {
  float x[width], attention[width], slope[width];
  unpack<T>(row.x, x);
  gates.arguments(row.alpha, row.factor, attention);
  squash_all<T>(attention, squash, slope);
  GALA_UNROLL
  for (int i = 0; i < width; ++i) {
    const float from_map = (channels ? row.map_factor : lane_map[i]) * attention[i];
    const float e = std::fma(d[i], x[i], from_map) * slope[i];
    float& sum = channels ? over_rows.plain[i] : plain;
    sum += e;
    over_rows.weighted[i] = std::fma(e, row.factor, over_rows.weighted[i]);
    weighted = std::fma(e, gates.lane_factor[i], weighted);
  }
}

// Writes the sums of `rows` rows from `row` on: ds with channels_last, else d alpha and d beta.
template <int rows, bool channels>
GALA_DEVICE void store_row_sums(const float (&sums)[2 * rows], const RowTiling& tiling, const ThreadPosition& here,
                                int row, float* to) {
  if constexpr (channels) {
    GALA_UNROLL
    for (int k = 0; k < rows; ++k) {
      const float sum = sum_over_group(sums[rows + k], tiling.group_size);
      if (here.leader && row + k < here.end) store_global(to + row + k, sum);
    }
  } else {
    const float sum = sum_over_lanes(sums);
    const int index = lane() * 2 * rows / 32, k = index % rows;
    if (lane() % (16 / rows) == 0 && row + k < here.end)
      store_global(to + index / rows * tiling.channels + row + k, sum);
  }
}

template <class T, int width, bool channels>
GALA_KERNEL(kRowThreads, 3)
scale_backward_kernel(ScaleBackwardParams p) {
  constexpr int kRows = kRowsInFlight<T, width>;
  const ThreadPosition here(p.tiling, block_x(), width, kRows);
  const Gates<width, channels> gates(p.gates, p.stats + here.image * p.stats_width, p.tiling, here);
  const float* map_factor = p.map_factor ? p.map_factor + here.image * p.tiling.pixels : nullptr;
  const int64_t gates_part = (channels ? here.share : here.tile) * p.tiling.images + here.image;
  const int64_t ds_part = (channels ? here.tile : here.share) * p.tiling.images + here.image;
  float* d_alpha = p.d_gates + gates_part * 2 * p.tiling.channels;
  float* ds = p.ds + ds_part * p.tiling.pixels;
  float lane_map[width] = {};
  GALA_UNROLL
  for (int i = 0; i < width; ++i)
    if (!channels && map_factor && here.inside) lane_map[i] = load_global(map_factor + here.first + i);
  const bool add = p.out.data != nullptr;
  RowIterator<T, width> x(p.x, here), grad_out(p.grad_out, here), out(p.out, here),
      grad_residual(p.grad_residual, here);
  RowSums<width> over_rows;

  const auto take = [&]<int rows>(int row, int first) {
    float row_sums[2 * rows] = {};  // of e, and of e times the lanes' factors
    if (here.inside && row < here.end) {
      Row<T, width> from[rows];
      GALA_UNROLL
      for (int k = 0; k < rows; ++k) {
        from[k].x = load_streaming(x.at(first + k));
        const auto* grad = grad_out.at(first + k);
        from[k].grad = add ? load_streaming(grad) : load_global(grad);  // what grad_x reads again may stay in L2
        if (add) from[k].out = load_streaming(out.at(first + k));
        from[k].alpha = gates.row_alpha(row + k);
        from[k].factor = gates.row_factor(row + k);
        if (channels && map_factor) from[k].map_factor = load_global(map_factor + row + k);
      }
      GALA_UNROLL
      for (int k = 0; k < rows; ++k) {
        float d[width];
        unpack<T>(from[k].grad, d);
        if (add) through_relu<T>(from[k].out, d, grad_residual.at(first + k));
        add_row(gates, from[k], d, lane_map, p.squash, over_rows, row_sums[k], row_sums[rows + k]);
      }
    }
    store_row_sums<rows, channels>(row_sums, p.tiling, here, row, channels ? ds : d_alpha);
  };
  for_each_row<kRows>(here, take, x, grad_out, out, grad_residual);
  if (channels) sum_groups(over_rows.plain, p.tiling, here, d_alpha);
  sum_groups(over_rows.weighted, p.tiling, here, channels ? d_alpha + p.tiling.channels : ds);
}

namespace {

int width_of(const Problem& problem, const Backward& b) {
  const bool add = b.out.data != nullptr;
  const FeatureMap maps[] = {b.x, b.grad_out, add ? b.out : b.x, add ? b.grad_residual : b.x};
  return vector_width(problem, maps);
}

// How many parts the sums have and how long they are. A single part is the sum itself and needs no scratch memory.
struct Parts {
  int64_t gates_count, ds_count, gates_rows, ds_rows;
  Parts(const Problem& problem, const RowTiling& tiling)
      : gates_count(problem.channels_last ? tiling.shares : tiling.tiles),
        ds_count(problem.channels_last ? tiling.tiles : tiling.shares), gates_rows(tiling.images * 2 * tiling.channels),
        ds_rows(tiling.images * tiling.pixels) {}
  int64_t gates_floats() const { return gates_count > 1 ? gates_count * gates_rows : 0; }
  int64_t ds_floats() const { return ds_count > 1 ? ds_count * ds_rows : 0; }
};

}  // namespace

int64_t scale_backward_scratch(const Problem& problem, const Backward& b) {
  const Parts parts(problem, row_tiling(problem, width_of(problem, b)));
  return (parts.gates_floats() + parts.ds_floats()) * 4;
}

void scale_backward(const Problem& problem, const Backward& b, const float* gates, float* d_gates, float* ds,
                    const Execution& execution) {
  const Shape& s = problem.shape;
  const int width = width_of(problem, b);
  ScaleBackwardParams p{};
  p.tiling = row_tiling(problem, width);
  p.x = row_map(problem, b.x);
  p.grad_out = row_map(problem, b.grad_out);
  p.out = row_map(problem, b.out);
  p.grad_residual = b.out.data ? row_map(problem, b.grad_residual) : RowMap{};
  p.gates = gates;
  p.stats_width = stats_width(s);
  p.stats = static_cast<const float*>(b.stats);
  p.map_factor = static_cast<const float*>(b.map_factor);
  p.squash = problem.squash;
  const Parts parts(problem, p.tiling);
  float* scratch = static_cast<float*>(execution.workspace);
  p.d_gates = parts.gates_count > 1 ? scratch : d_gates;
  p.ds = parts.ds_count > 1 ? scratch + parts.gates_floats() : ds;
  with_row_kernel(problem, width, [&]<class T, int width, bool channels>() {
    launch("scale_backward_kernel", scale_backward_kernel<T, width, channels>, {blocks(p.tiling)}, kRowThreads,
           kGroupSumBytes<width>, execution.stream, p);
  });
  sum_parts({p.d_gates, d_gates, parts.gates_count > 1 ? parts.gates_rows : 0, parts.gates_count},
            {p.ds, ds, parts.ds_count > 1 ? parts.ds_rows : 0, parts.ds_count}, execution);
}

}  // namespace gala::cuda

// scale's backward: e = (d x + map_factor A) squash'(A), its sums d alpha, d beta and ds, and d as the residual's
// gradient. x and grad_out are read once; the sums along the lanes are of a warp, those along the rows of a block, and
// parts of both are added in order.

#include <cmath>
#include <primitives.cuh>

#include "squash.cuh"
#include "stages.h"
#include "sweep.cuh"
#include "vectors.cuh"

namespace gala::cuda {

struct ScaleBackwardParams {
  Sweep sweep;
  Plane x, grad_out, out, grad_residual;  // out and grad_residual with a residual only
  const float* gates;  // [images, 2, C]
  const float* stats;
  int64_t stats_width;
  const float* map_factor;  // [images, HW], or null
  float* d_gates;  // [shares with channels_last, else tiles; images, 2, C]
  float* ds;  // [tiles with channels_last, else shares; images, HW]
  bool tanh;
};

// One row's elements of x, grad_out and out, and what of the gates and of the map's gradient is the row's.
template <class T, int width>
struct Row {
  Packed<T, width> x = {}, grad = {}, out = {};
  float alpha = 0.0f, factor = 0.0f, map_factor = 0.0f;
};

// d, also as the residual's gradient: grad_out where out is positive.
template <class T, int width>
GALA_DEVICE void through_relu(const Packed<T, width>& out, float (&d)[width], Packed<T, width>* grad_residual) {
  float value[width];
  unpack<T>(out, value);
  GALA_UNROLL
  for (int i = 0; i < width; ++i) d[i] = value[i] <= 0.0f ? 0.0f : d[i];
  store_global(grad_residual, pack<T>(d));
}

// Sums over the rows, for each of a thread's elements along the lanes: of e, and of e times the rows' factors.
template <int width>
struct RowSums {
  float plain[width] = {}, weighted[width] = {};
};

template <class T, int width, bool channels>
GALA_DEVICE void add_row(const Gates<width, channels>& gates, const Row<T, width>& row, const float (&d)[width],
                         const float (&lane_map)[width], bool tanh, RowSums<width>& over_rows, float& plain,
                         float& weighted) {
  float x[width], attention[width], slope[width];
  unpack<T>(row.x, x);
  gates.add_up(row.alpha, row.factor, attention);
  squash_all<T>(attention, tanh, slope);
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

// Of `rows` rows from `row` on: ds with channels_last, else d alpha and d beta.
template <int rows, bool channels>
GALA_DEVICE void store_row_sums(const float (&sums)[2 * rows], const Sweep& sweep, const Place& here, int row,
                                float* to) {
  if constexpr (channels) {
    GALA_UNROLL
    for (int k = 0; k < rows; ++k) {
      const float sum = sum_abreast(sums[rows + k], sweep.abreast);
      if (here.leader && row + k < here.end) store_global(to + row + k, sum);
    }
  } else {
    const float sum = sum_over_lanes(sums);
    const int index = lane() * 2 * rows / 32, k = index % rows;
    if (lane() % (16 / rows) == 0 && row + k < here.end)
      store_global(to + index / rows * sweep.channels + row + k, sum);
  }
}

template <class T, int width, bool channels>
GALA_KERNEL(kSweepThreads, 3)
scale_backward_kernel(ScaleBackwardParams p) {
  constexpr int kRows = kRowsInFlight<T, width>;
  const Place here(p.sweep, block_x(), width, kRows);
  const Gates<width, channels> gates(p.gates, p.stats + here.image * p.stats_width, p.sweep, here);
  const float* map_factor = p.map_factor ? p.map_factor + here.image * p.sweep.pixels : nullptr;
  const int64_t gates_part = (channels ? here.share : here.tile) * p.sweep.images + here.image;
  const int64_t ds_part = (channels ? here.tile : here.share) * p.sweep.images + here.image;
  float* d_alpha = p.d_gates + gates_part * 2 * p.sweep.channels;
  float* ds = p.ds + ds_part * p.sweep.pixels;
  float lane_map[width] = {};
  GALA_UNROLL
  for (int i = 0; i < width; ++i)
    if (!channels && map_factor && here.inside) lane_map[i] = load_global(map_factor + here.first + i);
  const bool add = p.out.data != nullptr;
  Walk<T, width> x(p.x, here), grad_out(p.grad_out, here), out(p.out, here), grad_residual(p.grad_residual, here);
  RowSums<width> over_rows;

  const auto take = [&]<int rows>(int row, int first) {
    float row_sums[2 * rows] = {};  // of e, and of e times the lanes' factors
    if (here.inside && row < here.end) {
      Row<T, width> from[rows];
      GALA_UNROLL
      for (int k = 0; k < rows; ++k) {
        from[k].x = load_streaming(x.at(first + k));
        const auto* grad = grad_out.at(first + k);
        from[k].grad = add ? load_streaming(grad) : load_global(grad);  // what grad_x reads again stays in the cache
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
        add_row(gates, from[k], d, lane_map, p.tanh, over_rows, row_sums[k], row_sums[rows + k]);
      }
    }
    store_row_sums<rows, channels>(row_sums, p.sweep, here, row, channels ? ds : d_alpha);
  };
  sweep_rows<kRows>(here, take, x, grad_out, out, grad_residual);
  if (channels) sum_groups(over_rows.plain, p.sweep, here, d_alpha);
  sum_groups(over_rows.weighted, p.sweep, here, channels ? d_alpha + p.sweep.channels : ds);
}

namespace {

int width_of(const Problem& problem, const Backward& b) {
  const bool add = b.out.data != nullptr;
  const FeatureMap maps[] = {b.x, b.grad_out, add ? b.out : b.x, add ? b.grad_residual : b.x};
  return sweep_width(problem, maps);
}

// The sums' parts in the scratch memory; a single part is the sum, and needs no place there.
struct Parts {
  int64_t gates_count, ds_count, gates_rows, ds_rows;
  Parts(const Problem& problem, const Sweep& sweep)
      : gates_count(problem.channels_last ? sweep.shares : sweep.tiles),
        ds_count(problem.channels_last ? sweep.tiles : sweep.shares), gates_rows(sweep.images * 2 * sweep.channels),
        ds_rows(sweep.images * sweep.pixels) {}
  int64_t gates_floats() const { return gates_count > 1 ? gates_count * gates_rows : 0; }
  int64_t ds_floats() const { return ds_count > 1 ? ds_count * ds_rows : 0; }
};

}  // namespace

int64_t scale_backward_scratch(const Problem& problem, const Backward& b, Images images) {
  const Parts parts(problem, sweep_of(problem, width_of(problem, b), images));
  return (parts.gates_floats() + parts.ds_floats()) * 4;
}

void scale_backward(const Problem& problem, const Backward& b, Images images, const float* gates, float* d_gates,
                    float* ds, const Execution& execution) {
  const Shape& s = problem.shape;
  const int width = width_of(problem, b);
  ScaleBackwardParams p{};
  p.sweep = sweep_of(problem, width, images);
  p.x = plane(problem, b.x, images);
  p.grad_out = plane(problem, b.grad_out, images);
  p.out = plane(problem, b.out, images);
  p.grad_residual = b.out.data ? plane(problem, b.grad_residual, images) : Plane{};
  p.gates = gates + images.first * 2 * s.channels;
  p.stats_width = stats_width(s);
  p.stats = static_cast<const float*>(b.stats) + images.first * p.stats_width;
  p.map_factor = b.map_factor ? static_cast<const float*>(b.map_factor) + images.first * s.pixels : nullptr;
  p.tanh = problem.squash == Squash::tanh;
  const Parts parts(problem, p.sweep);
  float* scratch = static_cast<float*>(execution.workspace);
  d_gates += images.first * 2 * s.channels;
  ds += images.first * s.pixels;
  p.d_gates = parts.gates_count > 1 ? scratch : d_gates;
  p.ds = parts.ds_count > 1 ? scratch + parts.gates_floats() : ds;
  with_sweep(problem, width, [&]<class T, int width, bool channels>() {
    launch("scale_backward_kernel", scale_backward_kernel<T, width, channels>, {blocks(p.sweep)}, kSweepThreads,
           kSweepShared<width>, execution.stream, p);
  });
  sum_parts({p.d_gates, d_gates, parts.gates_count > 1 ? parts.gates_rows : 0, parts.gates_count},
            {p.ds, ds, parts.ds_count > 1 ? parts.ds_rows : 0, parts.ds_count}, execution);
}

}  // namespace gala::cuda

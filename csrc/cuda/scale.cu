// scale: out = x * squash(alpha + beta s), with a residual relu(out + residual), and the map.

#include <cmath>
#include <primitives.cuh>

#include "squash.cuh"
#include "stages.h"
#include "sweep.cuh"
#include "vectors.cuh"

namespace gala::cuda {

struct ScaleParams {
  Sweep sweep;
  Plane x, residual, out;  // residual.data may be null
  const float* gates;  // [images, 2, C]
  const float* stats;
  int64_t stats_width;
  float* map_parts;  // [tiles or shares, images, HW], or null
  bool tanh;
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

// The sum over the lanes' squares with channel lanes; else they are added to those of the rows before.
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
GALA_KERNEL(kSweepThreads, 5)
scale_kernel(ScaleParams p) {
  constexpr int kRows = kRowsInFlight<T, width>;
  const Place here(p.sweep, width);
  const Gates<width, channels> gates(p.gates, p.stats + here.image * p.stats_width, p.sweep, here);
  const int64_t part = (channels ? here.tile : here.share) * p.sweep.images + here.image;
  float* map = p.map_parts ? p.map_parts + part * p.sweep.pixels : nullptr;
  const bool add = p.residual.data != nullptr;
  Walk<T, width> x(p.x, here), residual(p.residual, here), out(p.out, here);
  float squares[width] = {};

  for (int top = here.begin + here.group; top - here.group < here.end; top += kRows * here.groups) {
    Packed<T, width> rows[kRows] = {}, added[kRows] = {};
    float row_alpha[kRows] = {}, row_factor[kRows] = {};
    GALA_UNROLL
    for (int k = 0; k < kRows; ++k) {
      const int row = top + k * here.groups;
      if (!here.inside || row >= here.end) continue;
      rows[k] = load_streaming(x.at(k));
      if (add) added[k] = load_streaming(residual.at(k));
      row_alpha[k] = gates.row_alpha(row);
      row_factor[k] = gates.row_factor(row);
    }
    GALA_UNROLL
    for (int k = 0; k < kRows; ++k) {
      const int row = top + k * here.groups;
      float square = 0.0f;
      if (here.inside && row < here.end) {
        float attention[width];
        gates.add_up(row_alpha[k], row_factor[k], attention);
        squash_all<T>(attention, p.tanh);
        store_global(out.at(k), scaled<T, width>(rows[k], attention, added[k], add));
        if (map) square = add_squares<width, channels>(attention, squares);
      }
      if (channels && map) {
        square = sum_abreast(square, p.sweep.abreast);
        if (here.leader && row < here.end) store_global(map + row, square);
      }
    }
    x.advance();
    residual.advance();
    out.advance();
  }
  if (!channels && map) sum_groups(squares, p.sweep, here, map);
}

namespace {

int width_of(const Problem& problem, const Forward& f) {
  const FeatureMap maps[] = {f.x, f.out, f.residual.data ? f.residual : f.x};
  return sweep_width(problem, maps);
}

}  // namespace

int64_t scale_scratch(const Problem& problem, const Forward& f, Images images) {
  if (!f.map) return 0;
  const Sweep sweep = sweep_of(problem, width_of(problem, f), images);
  return (problem.channel_lanes ? sweep.tiles : sweep.shares) * images.count * problem.shape.pixels * 4;
}

void scale(const Problem& problem, const Forward& f, Images images, const float* gates, const Execution& execution) {
  const Shape& s = problem.shape;
  const int width = width_of(problem, f);
  ScaleParams p{};
  p.sweep = sweep_of(problem, width, images);
  p.x = plane(problem, f.x, images);
  p.residual = plane(problem, f.residual, images);
  p.out = plane(problem, f.out, images);
  p.gates = gates + images.first * 2 * s.channels;
  p.stats_width = stats_width(s);
  p.stats = static_cast<const float*>(f.stats) + images.first * p.stats_width;
  p.map_parts = f.map ? static_cast<float*>(execution.workspace) : nullptr;
  p.tanh = problem.squash == Squash::tanh;
  with_sweep(problem, width, [&]<class T, int width, bool channels>() {
    launch("scale_kernel", scale_kernel<T, width, channels>, {blocks(p.sweep)}, kSweepThreads,
           f.map && !channels ? kSweepShared<width> : 0, execution.stream, p);
  });
  if (!f.map) return;
  const int64_t rows = images.count * s.pixels, parts = problem.channel_lanes ? p.sweep.tiles : p.sweep.shares;
  sum_parts({p.map_parts, static_cast<float*>(f.map) + images.first * s.pixels, rows, parts, true}, {}, execution);
}

}  // namespace gala::cuda

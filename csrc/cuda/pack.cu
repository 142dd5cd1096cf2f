// Packs the local path's weights as the products read them: in x's dtype, each row padded with zeros to whole steps.

#include <primitives.cuh>

#include "launchers.h"
#include "tile.cuh"

namespace gala::cuda {

struct PackParams {
  const float *v_shrink, *v_collapse;  // [R, C]; [R] or null
  void* to;  // v_shrink as [R, depth]; or with v_collapse its transpose, multiplied by v_collapse, as [C, depth]
  int64_t channels, reduced, depth;
};

template <class T>
GALA_KERNEL(kTileThreads, 4)
pack_kernel(PackParams p) {
  const int64_t index = int64_t{block_x()} * kTileThreads + thread_index(), row = index / p.depth, k = index % p.depth;
  const bool by_channels = p.v_collapse != nullptr;
  if (row >= (by_channels ? p.channels : p.reduced)) return;
  const int64_t channel = by_channels ? row : k, unit = by_channels ? k : row;
  float value = 0.0f;
  if (channel < p.channels && unit < p.reduced) {
    value = load_global(p.v_shrink + unit * p.channels + channel);
    if (by_channels) value *= load_global(p.v_collapse + unit);
  }
  store_global(static_cast<T*>(p.to) + index, from_float<T>(value));
}

namespace {

void pack(const Problem& problem, const void* v_collapse, void* packed, int64_t bytes, const Execution& execution) {
  const Shape& s = problem.shape;
  const int64_t elements = bytes / element_bytes(problem.dtype);
  const PackParams p{static_cast<const float*>(problem.weights.v_shrink),
                     static_cast<const float*>(v_collapse),
                     packed,
                     s.channels,
                     s.reduced,
                     elements / (v_collapse ? s.channels : s.reduced)};
  with_element_type(problem.dtype, [&]<class T>() {
    launch("pack_kernel", pack_kernel<T>, {ceil_div(elements, kTileThreads)}, kTileThreads, 0, execution.stream, p);
  });
}

}  // namespace

int64_t packed_shrink_bytes(const Problem& problem) {
  return problem.shape.reduced * packed_row_bytes(problem, problem.shape.channels);
}

void pack_shrink(const Problem& problem, void* packed, const Execution& execution) {
  pack(problem, nullptr, packed, packed_shrink_bytes(problem), execution);
}

int64_t packed_local_bytes(const Problem& problem) {
  return problem.shape.channels * packed_row_bytes(problem, problem.shape.reduced);
}

void pack_local(const Problem& problem, void* packed, const Execution& execution) {
  pack(problem, problem.weights.v_collapse, packed, packed_local_bytes(problem), execution);
}

}  // namespace gala::cuda

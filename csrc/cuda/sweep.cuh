// How scale and its backward walk over an image. A thread holds some neighbouring elements along the lanes (channels
// with channels_last, else pixels) and sweeps over rows, of the other dimension. The sum of squash's argument is the
// same in both: alpha + beta s, of which one factor belongs to the lanes and the other to the row.
#pragma once

#include <cmath>
#include <primitives.cuh>

#include "stages.h"
#include "vectors.cuh"

namespace gala::cuda {

constexpr int kSweepThreads = 128;

struct Sweep {
  int channels, pixels, lanes, rows;
  int abreast;  // threads side by side on a row: 32, or with channels_last a smaller power of two
  int tiles, shares, span;  // blocks along the lanes and along the rows, rows of a block
  int64_t images;
};

// A feature map from the chunk's first image on; strides in elements.
struct Plane {
  void* data;
  int64_t image_stride, row_stride;
};

// Rows that a thread has in flight: 32 bytes of each feature map, or fewer where its elements are few.
constexpr int rows_in_flight(int width, int64_t bytes) { return width == 1 ? 8 : width * bytes == 16 ? 2 : 4; }
template <class T, int width>
constexpr int kRowsInFlight = rows_in_flight(width, sizeof(T));

// Where a thread stands.
struct Place {
  int64_t image;
  int tile, share, group, groups;  // groups of `abreast` threads
  int first;  // of its elements along the lanes
  bool inside, leader;  // whether it has elements; whether it is the first of its group
  int begin, end, step;  // its group's first rows, `in_flight` neighbours; the block's last; to the group's next rows
  int turns, whole_turns;  // of the block; the last one may find fewer rows

  GALA_DEVICE Place(const Sweep& sweep, int block, int width, int in_flight) {
    const int per_image = sweep.tiles * sweep.shares, index = block % per_image;
    image = block / per_image;
    tile = index % sweep.tiles;
    share = index / sweep.tiles;
    group = thread_index() / sweep.abreast;
    groups = kSweepThreads / sweep.abreast;
    first = (tile * sweep.abreast + thread_index() % sweep.abreast) * width;
    inside = first < sweep.lanes;
    leader = thread_index() % sweep.abreast == 0;
    const int top = share * sweep.span;
    begin = top + group * in_flight;
    end = top + sweep.span < sweep.rows ? top + sweep.span : sweep.rows;
    step = groups * in_flight;
    turns = (end - top + step - 1) / step;
    whole_turns = (end - top) / step;
  }
};

// A thread's elements of the rows that it has in flight, in one feature map.
template <class T, int width>
class Walk {
 public:
  GALA_DEVICE Walk(const Plane& plane, const Place& here)
      : next_(static_cast<T*>(plane.data) + here.image * plane.image_stride + here.begin * plane.row_stride +
              here.first),
        row_stride_(plane.row_stride), step_(here.step * plane.row_stride) {}
  GALA_DEVICE Packed<T, width>* at(int k) const { return reinterpret_cast<Packed<T, width>*>(next_ + k * row_stride_); }
  GALA_DEVICE void advance() { next_ += step_; }

 private:
  T* next_;
  int64_t row_stride_, step_;
};

// Calls take<rows>(row, first) for all rows of the thread's group: `rows` rows from `row` on, which are in flight from
// the first-th on. All of them exist, or it is a single one that may not.
template <int in_flight, class Take, class... Walks>
GALA_DEVICE void sweep_rows(const Place& here, const Take& take, Walks&... walks) {
  for (int turn = 0, row = here.begin; turn < here.turns; ++turn, row += here.step) {
    if (turn < here.whole_turns) {
      take.template operator()<in_flight>(row, 0);
    } else {
      GALA_ROLL
      for (int k = 0; k < in_flight; ++k) take.template operator()<1>(row + k, k);
    }
    (walks.advance(), ...);
  }
}

// alpha and beta, or s, of a thread's elements along the lanes; and of a row the rest.
template <int width, bool channels>
struct Gates {
  const float *alpha, *beta, *s;  // of the image
  float lane_alpha[width], lane_factor[width];

  GALA_DEVICE Gates(const float* gates, const float* statistics, const Sweep& sweep, const Place& here)
      : alpha(gates + here.image * 2 * sweep.channels), beta(alpha + sweep.channels), s(statistics) {
    const float* factors = channels ? beta : s;
    GALA_UNROLL
    for (int i = 0; i < width; ++i) {
      lane_alpha[i] = channels && here.inside ? load_global(alpha + here.first + i) : 0.0f;
      lane_factor[i] = here.inside ? load_global(factors + here.first + i) : 0.0f;
    }
  }
  GALA_DEVICE float row_alpha(int row) const { return channels ? 0.0f : load_global(alpha + row); }
  GALA_DEVICE float row_factor(int row) const { return load_global((channels ? s : beta) + row); }
  GALA_DEVICE void add_up(float row_alpha, float row_factor, float (&totals)[width]) const {
    GALA_UNROLL
    for (int i = 0; i < width; ++i)
      totals[i] = std::fma(lane_factor[i], row_factor, channels ? lane_alpha[i] : row_alpha);
  }
};

// The sum of the group's values, in a fixed order.
GALA_DEVICE float sum_abreast(float value, int abreast) {
  for (int mask = abreast / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Adds the block's sums along the rows, `mine` of each thread's elements, and writes them to [lanes].
template <int width>
GALA_DEVICE void sum_groups(const float (&mine)[width], const Sweep& sweep, const Place& here, float* to) {
  float* shared = shared_memory<float>();  // [groups, width, abreast]
  const int beside = thread_index() % sweep.abreast, tile = sweep.abreast * width;
  block_barrier();
  GALA_UNROLL
  for (int i = 0; i < width; ++i)
    store_shared(shared + here.group * tile + crossed_place<width>(i, beside, sweep.abreast), mine[i]);
  block_barrier();
  for (int i = thread_index(); i < tile; i += kSweepThreads) {
    const int lane = here.tile * tile + i;
    if (lane >= sweep.lanes) return;
    const float* from = shared + crossed_place<width>(i % width, i / width, sweep.abreast);
    float total = 0.0f;
    for (int group = 0; group < here.groups; ++group) total += load_shared(from + group * tile);
    store_global(to + lane, total);
  }
}

template <int width>
constexpr int kSweepShared = kSweepThreads * width * 4;  // bytes of sum_groups

// ---- host

inline int64_t element_bytes(const Problem& problem) { return problem.dtype == DType::f32 ? 4 : 2; }

inline Plane plane(const Problem& problem, const FeatureMap& map, Images images) {
  if (!map.data) return {};
  const int64_t offset = images.first * map.image_stride * element_bytes(problem);
  return {static_cast<char*>(map.data) + offset, map.image_stride,
          problem.channels_last ? map.pixel_stride : map.channel_stride};
}

// Whether vectors of `width` elements are aligned in a map and end where it ends.
inline bool aligned(const Problem& problem, const FeatureMap& map, int width) {
  const Shape& s = problem.shape;
  const bool channels = problem.channels_last;
  const int64_t lanes = channels ? s.channels : s.pixels, rows = channels ? s.pixels : s.channels;
  const int64_t row_stride = channels ? map.pixel_stride : map.channel_stride;
  return reinterpret_cast<uintptr_t>(map.data) % (width * element_bytes(problem)) == 0 && lanes % width == 0 &&
         (rows == 1 || row_stride % width == 0) && (s.images == 1 || map.image_stride % width == 0);
}

// The widest vectors that the maps take and that leave at most half of a warp idle.
template <class Maps>
int sweep_width(const Problem& problem, const Maps& maps) {
  const int widest = static_cast<int>(16 / element_bytes(problem));
  for (const int width : {widest, 4}) {
    if (problem.channels_last && width < widest) break;
    bool fits = true;
    for (const FeatureMap& map : maps) fits = fits && aligned(problem, map, width);
    const int64_t vectors = problem.shape.pixels / width;
    if (fits && (problem.channels_last || ceil_div(vectors, 32) * 16 <= vectors)) return width;
  }
  return 1;
}

// Blocks enough for every GPU, by the shape of the whole batch alone, as what is summed in which order depends on them.
inline Sweep sweep_of(const Problem& problem, int width, Images images) {
  const Shape& s = problem.shape;
  const int64_t lanes = problem.channels_last ? s.channels : s.pixels;
  const int64_t rows = problem.channels_last ? s.pixels : s.channels;
  int64_t abreast = 32;
  while (problem.channels_last && abreast > 1 && abreast / 2 * width >= lanes) abreast /= 2;
  const int64_t tiles = ceil_div(lanes, abreast * width);
  const int64_t at_once = kSweepThreads / abreast * rows_in_flight(width, element_bytes(problem));
  const int64_t wanted = ceil_div(2048, tiles * s.images), most = ceil_div(rows, at_once);
  const int64_t span = ceil_div(ceil_div(rows, wanted < most ? wanted : most), at_once) * at_once;
  return {static_cast<int>(s.channels),
          static_cast<int>(s.pixels),
          static_cast<int>(lanes),
          static_cast<int>(rows),
          static_cast<int>(abreast),
          static_cast<int>(tiles),
          static_cast<int>(ceil_div(rows, span)),
          static_cast<int>(span),
          images.count};
}

inline int64_t blocks(const Sweep& sweep) { return int64_t{sweep.tiles} * sweep.shares * sweep.images; }

// Calls launch<T, width, channels>().
template <class Launch>
void with_sweep(const Problem& problem, int width, const Launch& launch) {
  const auto of_type = [&]<class T, int widest>() {
    if (problem.channels_last)
      width == 1 ? launch.template operator()<T, 1, true>() : launch.template operator()<T, widest, true>();
    else if (width == 1) launch.template operator()<T, 1, false>();
    else if (width == 4) launch.template operator()<T, 4, false>();
    else launch.template operator()<T, widest, false>();
  };
  switch (problem.dtype) {
    case DType::f32: return of_type.template operator()<float, 4>();
    case DType::bf16: return of_type.template operator()<bf16, 8>();
    case DType::f16: return of_type.template operator()<f16, 8>();
    case DType::f64: return;  // refused before
  }
}

}  // namespace gala::cuda

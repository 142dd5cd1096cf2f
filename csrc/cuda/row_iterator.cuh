// How the threads of scale and of its backward divide an image. Along the lanes (the channels with channels_last, else
// the pixels) a thread holds a few neighbouring elements; it then goes through the rows, which are the other dimension.
// Of squash's argument alpha + beta s, one factor belongs to the lanes and the other to the row.
#pragma once

#include <cmath>
#include <primitives.cuh>

#include "element_types.cuh"
#include "launchers.h"
#include "vectors.cuh"

namespace gala::cuda {

constexpr int kRowThreads = 128;

// How the images are divided between blocks.
struct RowTiling {
  int channels, pixels, lanes, rows;
  int group_size;  // threads side by side on a row: 32, or with channels_last a smaller power of two
  int tiles, shares, span;  // blocks along the lanes, blocks along the rows, rows of a block
  int64_t images;
};

// A feature map; strides in elements.
struct RowMap {
  void* data;
  int64_t image_stride, row_stride;
};

// Rows that a thread loads before it computes: 32 bytes of each feature map, or fewer where its elements are few.
constexpr int rows_in_flight(int width, int bytes) { return width == 1 ? 8 : width * bytes == 16 ? 2 : 4; }
template <class T, int width>
constexpr int kRowsInFlight = rows_in_flight(width, static_cast<int>(sizeof(T)));

// Which elements a thread computes. A group of `group_size` threads takes `in_flight` neighbouring rows in each turn.
struct ThreadPosition {
  int64_t image;
  int tile, share, group, groups;
  int first;  // the thread's first element along the lanes
  bool inside, leader;  // whether it has elements; whether it is the first of its group
  int begin, end, step;  // the group's first row; the end of the block's rows; from one turn's first row to the next
  int turns, whole_turns;  // of the block; in the last turn there may be fewer rows

  GALA_DEVICE ThreadPosition(const RowTiling& tiling, int block, int width, int in_flight) {
    const int per_image = tiling.tiles * tiling.shares, index = block % per_image;
    image = block / per_image;
    tile = index % tiling.tiles;
    share = index / tiling.tiles;
    group = thread_index() / tiling.group_size;
    groups = kRowThreads / tiling.group_size;
    first = (tile * tiling.group_size + thread_index() % tiling.group_size) * width;
    inside = first < tiling.lanes;
    leader = thread_index() % tiling.group_size == 0;
    const int top = share * tiling.span;
    begin = top + group * in_flight;
    end = top + tiling.span < tiling.rows ? top + tiling.span : tiling.rows;
    step = groups * in_flight;
    turns = (end - top + step - 1) / step;
    whole_turns = (end - top) / step;
  }
};

// Steps through the rows of one feature map: at(k) is the thread's elements in the k-th row of the current turn.
template <class T, int width>
class RowIterator {
 public:
  GALA_DEVICE RowIterator(const RowMap& map, const ThreadPosition& here)
      : next_(static_cast<T*>(map.data) + here.image * map.image_stride + here.begin * map.row_stride + here.first),
        row_stride_(map.row_stride), step_(here.step * map.row_stride) {}
  GALA_DEVICE Packed<T, width>* at(int k) const { return reinterpret_cast<Packed<T, width>*>(next_ + k * row_stride_); }
  GALA_DEVICE void advance() { next_ += step_; }

 private:
  T* next_;
  int64_t row_stride_, step_;
};

// Calls take<rows>(row, k) for all rows of the thread's group, and advances the iterators after each turn: it is to
// take `rows` rows, `row` and the following ones, which the iterators have at k and the following places. All of them
// exist, but that a single row may lie beyond the end.
template <int in_flight, class Take, class... Iterators>
GALA_DEVICE void for_each_row(const ThreadPosition& here, const Take& take, Iterators&... iterators) {
  for (int turn = 0, row = here.begin; turn < here.turns; ++turn, row += here.step) {
    if (turn < here.whole_turns) {
      take.template operator()<in_flight>(row, 0);
    } else {
      GALA_ROLL
      for (int k = 0; k < in_flight; ++k) take.template operator()<1>(row + k, k);
    }
    (iterators.advance(), ...);
  }
}

// The parts of alpha + beta s that belong to a thread's elements along the lanes, loaded once; and a row's parts.
template <int width, bool channels>
struct Gates {
  const float *alpha, *beta, *s;  // of the image
  float lane_alpha[width], lane_factor[width];

  GALA_DEVICE Gates(const float* gates, const float* statistics, const RowTiling& tiling, const ThreadPosition& here)
      : alpha(gates + here.image * 2 * tiling.channels), beta(alpha + tiling.channels), s(statistics) {
    const float* factors = channels ? beta : s;
    GALA_UNROLL
    for (int i = 0; i < width; ++i) lane_alpha[i] = lane_factor[i] = 0.0f;
    if (!here.inside) return;
    if (channels) load_lanes(alpha + here.first, lane_alpha);
    load_lanes(factors + here.first, lane_factor);
  }
  // Channels of several to a thread begin on a boundary of 16 bytes; s of an image may begin anywhere.
  GALA_DEVICE static void load_lanes(const float* from, float (&to)[width]) {
    constexpr int kAtOnce = channels && width >= 4 ? 4 : 1;
    using Vector = Vec<float, kAtOnce>;
    GALA_UNROLL
    for (int i = 0; i < width; i += kAtOnce) {
      const Vector values = load_global(reinterpret_cast<const Vector*>(from + i));
      GALA_UNROLL
      for (int k = 0; k < kAtOnce; ++k) to[i + k] = values.at[k];
    }
  }
  GALA_DEVICE float row_alpha(int row) const { return channels ? 0.0f : load_global(alpha + row); }
  GALA_DEVICE float row_factor(int row) const { return load_global((channels ? s : beta) + row); }
  GALA_DEVICE void arguments(float row_alpha, float row_factor, float (&totals)[width]) const {
    GALA_UNROLL
    for (int i = 0; i < width; ++i)
      totals[i] = std::fma(lane_factor[i], row_factor, channels ? lane_alpha[i] : row_alpha);
  }
};

// The sum of the values of a group of threads, in a fixed order.
GALA_DEVICE float sum_over_group(float value, int group_size) {
  GALA_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) {
    const float other = shuffle_xor(value, mask);
    value = mask < group_size ? value + other : value;
  }
  return value;
}

// Adds `mine`, which each thread has summed over its rows, over the groups of the block; writes the sums to [lanes].
template <int width>
GALA_DEVICE void sum_groups(const float (&mine)[width], const RowTiling& tiling, const ThreadPosition& here,
                            float* to) {
  float* shared = shared_memory<float>();  // [groups, width, group_size]
  const int beside = thread_index() % tiling.group_size, tile = tiling.group_size * width;
  block_barrier();
  GALA_UNROLL
  for (int i = 0; i < width; ++i)
    store_shared(shared + here.group * tile + crossed_place<width>(i, beside, tiling.group_size), mine[i]);
  block_barrier();
  for (int i = thread_index(); i < tile; i += kRowThreads) {
    const int lane = here.tile * tile + i;
    if (lane >= tiling.lanes) return;
    const float* from = shared + crossed_place<width>(i % width, i / width, tiling.group_size);
    float total = 0.0f;
    for (int group = 0; group < here.groups; ++group) total += load_shared(from + group * tile);
    store_global(to + lane, total);
  }
}

template <int width>
constexpr int kGroupSumBytes = kRowThreads * width * 4;  // of shared memory, for sum_groups

// ---- host

inline RowMap row_map(const Problem& problem, const FeatureMap& map) {
  if (!map.data) return {};
  return {static_cast<char*>(map.data), map.image_stride,
          problem.channels_last ? map.pixel_stride : map.channel_stride};
}

// Whether all vectors of `width` elements along the lanes are aligned in a map, and its rows hold a whole number of
// them.
inline bool aligned(const Problem& problem, const FeatureMap& map, int width) {
  const Shape& s = problem.shape;
  const bool channels = problem.channels_last;
  const int64_t lanes = channels ? s.channels : s.pixels, rows = channels ? s.pixels : s.channels;
  const int64_t row_stride = channels ? map.pixel_stride : map.channel_stride;
  return reinterpret_cast<uintptr_t>(map.data) % (width * element_bytes(problem.dtype)) == 0 && lanes % width == 0 &&
         (rows == 1 || row_stride % width == 0) && (s.images == 1 || map.image_stride % width == 0);
}

// How many elements the widest vectors have that are aligned in all maps and leave at most half of a warp idle.
template <class Maps>
int vector_width(const Problem& problem, const Maps& maps) {
  const int widest = 16 / element_bytes(problem.dtype);
  for (const int width : {widest, 4}) {
    if (problem.channels_last && width < widest) break;
    bool fits = true;
    for (const FeatureMap& map : maps) fits = fits && aligned(problem, map, width);
    const int64_t vectors = problem.shape.pixels / width;
    if (fits && (problem.channels_last || ceil_div(vectors, 32) * 16 <= vectors)) return width;
  }
  return 1;
}

// Makes blocks enough for every GPU. They depend on the shape alone, since they decide in which order elements are
// summed.
inline RowTiling row_tiling(const Problem& problem, int width) {
  const Shape& s = problem.shape;
  const int64_t lanes = problem.channels_last ? s.channels : s.pixels;
  const int64_t rows = problem.channels_last ? s.pixels : s.channels;
  int64_t group_size = 32;
  while (problem.channels_last && group_size > 1 && group_size / 2 * width >= lanes) group_size /= 2;
  const int64_t tiles = ceil_div(lanes, group_size * width);
  const int64_t at_once = kRowThreads / group_size * rows_in_flight(width, element_bytes(problem.dtype));
  const int64_t wanted = ceil_div(2048, tiles * s.images), most = ceil_div(rows, at_once);
  const int64_t span = ceil_div(ceil_div(rows, wanted < most ? wanted : most), at_once) * at_once;
  return {static_cast<int>(s.channels),
          static_cast<int>(s.pixels),
          static_cast<int>(lanes),
          static_cast<int>(rows),
          static_cast<int>(group_size),
          static_cast<int>(tiles),
          static_cast<int>(ceil_div(rows, span)),
          static_cast<int>(span),
          s.images};
}

inline int64_t blocks(const RowTiling& tiling) { return int64_t{tiling.tiles} * tiling.shares * tiling.images; }

// Calls launch<T, width, channels_last>() for the problem's dtype and layout.
template <class Launch>
void with_row_kernel(const Problem& problem, int width, const Launch& launch) {
  with_element_type(problem.dtype, [&]<class T>() {
    constexpr int widest = 16 / static_cast<int>(sizeof(T));
    if (problem.channels_last)
      width == 1 ? launch.template operator()<T, 1, true>() : launch.template operator()<T, widest, true>();
    else if (width == 1) launch.template operator()<T, 1, false>();
    else if (width == 4) launch.template operator()<T, 4, false>();
    else launch.template operator()<T, widest, false>();
  });
}

}  // namespace gala::cuda

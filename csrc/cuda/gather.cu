// gather: computes the local map s, its ReLU mask and the pooled mean p from x. The hidden layer is a product on the
// tensor cores; the pixels are summed from the same tiles in shared memory.

#include <primitives.cuh>

#include "fragment.cuh"
#include "launchers.h"
#include "tile.cuh"
#include "vectors.cuh"

namespace gala::cuda {

struct GatherParams {
  MapView x;
  const char* packed;  // v_shrink [R, depth]
  int64_t packed_row_bytes;
  const float *b_v_shrink, *v_collapse;  // [R], the bias may be null
  float* s_parts;  // [reduced_tiles, rows]
  float* pool_parts;  // [row_tiles, segments, C]
  uint32_t* relu_mask;  // [rows, words], or null
  int64_t rows;
  int reduced, words, steps, reduced_tiles, segments, stages;
  bool tf32x3;
};

// The pixels [begin, end) of a tile, which belong to one image.
struct Segment {
  int begin, end;
  GALA_DEVICE bool has(int row) const { return begin <= row && row < end; }
};

// Sums an image's pixels in a tile of x, for each channel of the step; writes the sums to `to`, [C] from the step's
// first channel on. The warps share the channels.
template <class T, bool channels_last, int rows>
GALA_DEVICE void pool(const char* tile, const Segment& segment, int channels_left, float* to) {
  constexpr int n = kVector<T>;
  constexpr int kLineBytes = channels_last ? kStepBytes : rows * static_cast<int>(sizeof(T));
  const int across = lane() / n;  // without channels_last: the lane's first vector of pixels
  float sums[n] = {};
  GALA_UNROLL
  for (int i = 0; i < rows / 32; ++i) {
    const int line = channels_last ? lane() + 32 * i : warp() * n + lane() % n;
    const int vector = channels_last ? warp() : across + 32 / n * i;
    const char* at = tile_at<kLineBytes>(tile, line, vector * kVectorBytes);
    float values[n];
    unpack<T>(load_shared(reinterpret_cast<const Packed<T, n>*>(at)), values);
    GALA_UNROLL
    for (int j = 0; j < n; ++j)
      if (segment.has(channels_last ? line : vector * n + j)) sums[channels_last ? j : 0] += values[j];
  }
  int channel = warp() * n;
  bool leader;
  if constexpr (channels_last) {
    sums[0] = sum_over_lanes(sums);
    channel += lane() * n / 32;
    leader = lane() % (32 / n) == 0;
  } else {
    for (int mask = n; mask < 32; mask *= 2) sums[0] += shuffle_xor(sums[0], mask);
    channel += lane();
    leader = lane() < n;
  }
  if (leader && channel < channels_left) store_global(to + channel, sums[0]);
}

// How the block's warps share a tile of the hidden layer [rows, reduced]: each has [16 kRowTiles, 8 kColTiles] of it.
template <int rows, int reduced>
struct Warps {
  static constexpr int kCols = reduced >= 256 ? 4 : 2, kRows = kTileWarps / kCols;
  static constexpr int kRowTiles = rows / kRows / 16, kColTiles = reduced / kCols / 8;
  GALA_DEVICE static int row() { return warp() / kCols * kRowTiles * 16; }
  GALA_DEVICE static int col() { return warp() % kCols * kColTiles * 8; }
};

// Takes a warp's part of the hidden layer, before bias and ReLU. Writes its ReLU mask, and its part of the local map
// into s_parts [rows of the tile] in shared memory.
template <int row_tiles, int col_tiles>
GALA_DEVICE void collapse(const GatherParams& p, const float (&hidden)[row_tiles][col_tiles][4], int64_t first_row,
                          int first_unit, int row, int rows_left, float* s_parts) {
  constexpr int kWords = col_tiles / 4;
  float sums[row_tiles][2] = {};
  uint32_t words[row_tiles][2][kWords] = {};
  GALA_UNROLL
  for (int i = 0; i < 2 * col_tiles; ++i) {
    const int col = i / 2 * 8 + lane() % 4 * 2 + i % 2, r = first_unit + col;
    if (r >= p.reduced) continue;
    const float bias = p.b_v_shrink ? load_global(p.b_v_shrink + r) : 0.0f, v = load_global(p.v_collapse + r);
    GALA_UNROLL
    for (int j = 0; j < 2 * row_tiles; ++j) {
      const float h = hidden[j / 2][i / 2][j % 2 * 2 + i % 2] + bias;
      const bool on = !(h <= 0.0f);
      sums[j / 2][j % 2] += (on ? h : 0.0f) * v;
      words[j / 2][j % 2][i / 8] |= (on ? 1u : 0u) << col % 32;
    }
  }
  GALA_UNROLL
  for (int j = 0; j < 2 * row_tiles; ++j) {
    float& sum = sums[j / 2][j % 2];
    const int at = row + j * 8 + lane() / 4;
    for (int mask = 1; mask < 4; mask *= 2) sum += shuffle_xor(sum, mask);
    if (lane() % 4 == 0) store_shared(s_parts + at, sum);
    GALA_UNROLL
    for (int word = 0; word < kWords; ++word) {
      uint32_t& bits = words[j / 2][j % 2][word];
      for (int mask = 1; mask < 4; mask *= 2) bits |= shuffle_xor(bits, mask);
      const int of_row = first_unit / 32 + word;
      if (p.relu_mask && lane() % 4 == word && at < rows_left && of_row < p.words)
        store_global(p.relu_mask + (first_row + at) * p.words + of_row, bits);
    }
  }
}

template <class T, bool channels_last, int rows, int reduced>
GALA_KERNEL(kTileThreads, reduced >= 256 ? 1 : 2)
gather_kernel(GatherParams p) {
  using Mine = Warps<rows, reduced>;
  constexpr int kLines = channels_last ? rows : kDepth<T>, kLineBytes = rows * kStepBytes / kLines;
  constexpr int kXBytes = rows * kStepBytes, kStage = kXBytes + reduced * kStepBytes;
  char* shared = shared_memory<char>();
  const int64_t tile = block_x() / p.reduced_tiles, first_row = tile * rows;
  const int reduced_tile = block_x() % p.reduced_tiles, first_unit = reduced_tile * reduced;
  const int rows_left = static_cast<int>(p.rows - first_row < rows ? p.rows - first_row : rows);
  const ImagePixel first = ImagePixel::of_row(static_cast<uint32_t>(first_row), p.x.pixels);
  const int pixels = static_cast<int>(p.x.pixels.divisor);
  const int segments = static_cast<int>(first.after(rows_left - 1, p.x.pixels).image - first.image) + 1;
  float sums[Mine::kRowTiles][Mine::kColTiles][4] = {};

  const auto load = [&](int step, int stage) {
    if (step >= p.steps) return;
    char* to = shared + stage * kStage;
    load_tile<T, channels_last, kLines, kLineBytes>(to, p.x, {first, rows_left, step * kDepth<T>});
    load_packed<reduced>(to + kXBytes, p.packed, p.packed_row_bytes, first_unit, p.reduced, step);
  };
  const auto compute = [&](int step, int stage) {
    const char *x = shared + stage * kStage, *v = x + kXBytes;
    GALA_UNROLL
    for (int k = 0; k < kInstructions; ++k) {
      Fragment<T, 4> left[Mine::kRowTiles];
      GALA_UNROLL
      for (int i = 0; i < Mine::kRowTiles; ++i)
        left[i] = left_operand<T, channels_last, kLineBytes>(x, Mine::row() + 16 * i, k);
      GALA_UNROLL
      for (int j = 0; j < Mine::kColTiles; j += 2) {
        Fragment<T, 2> right[2];
        right_operands<T, true, kStepBytes>(right, v, Mine::col() + 8 * j, k);
        GALA_UNROLL
        for (int i = 0; i < 2; ++i) multiply<T, Mine::kRowTiles, 1>(sums, 0, j + i, left, right + i, p.tf32x3);
      }
    }
    if (step % p.reduced_tiles != reduced_tile) return;  // the tiles of the same pixels share the pooling
    const int channel = step * kDepth<T>;
    for (int i = 0; i < segments; ++i) {
      const int64_t begin = i == 0 ? 0 : int64_t{i} * pixels - first.pixel, end = int64_t{i + 1} * pixels - first.pixel;
      const Segment segment{static_cast<int>(begin), end < rows_left ? static_cast<int>(end) : rows_left};
      pool<T, channels_last, rows>(x, segment, p.x.channels - channel,
                                   p.pool_parts + (tile * p.segments + i) * p.x.channels + channel);
    }
  };
  pipeline(p.steps, p.stages, load, [] {}, compute);

  float* s_parts = reinterpret_cast<float*>(shared);  // [warps beside each other, rows]
  const int part = Mine::col() / (reduced / Mine::kCols);
  collapse(p, sums, first_row, first_unit + Mine::col(), Mine::row(), rows_left, s_parts + part * rows);
  block_barrier();
  const int row = thread_index();
  if (row >= rows_left) return;
  float s = 0.0f;
  GALA_UNROLL
  for (int i = 0; i < Mine::kCols; ++i) s += load_shared(s_parts + i * rows + row);
  store_global(p.s_parts + reduced_tile * p.rows + first_row + row, s);
}

struct FinishParams {
  const float *s_parts, *pool_parts, *b_v_collapse;
  float* stats;
  int64_t rows, stats_width;
  int tile_rows, channels, reduced_tiles, segments;
  Divider pixels;
};

// Adds the tiles' parts of s and p, one thread for each element.
GALA_KERNEL(kTileThreads, 2) gather_finish_kernel(FinishParams p) {
  const int64_t pixels = p.pixels.divisor, blocks = (pixels + p.channels + kTileThreads - 1) / kTileThreads;
  const int64_t image = block_x() / blocks, index = block_x() % blocks * kTileThreads + thread_index();
  if (index >= pixels + p.channels) return;
  const int64_t first_row = image * pixels, channel = index - pixels;
  float sum = 0.0f;
  if (channel < 0) {
    for (int i = 0; i < p.reduced_tiles; ++i) sum += load_global(p.s_parts + i * p.rows + first_row + index);
    if (p.b_v_collapse) sum += load_global(p.b_v_collapse);
  } else {
    const int64_t end = (first_row + pixels - 1) / p.tile_rows;
    for (int64_t tile = first_row / p.tile_rows; tile <= end; ++tile) {
      const int64_t segment = image - tile * p.tile_rows / pixels;
      sum += load_global(p.pool_parts + (tile * p.segments + segment) * p.channels + channel);
    }
    sum /= static_cast<float>(pixels);
  }
  store_global(p.stats + image * p.stats_width + index, sum);
}

namespace {

// How many pixels and hidden units a tile has. It depends on the shape alone, since it decides in which order elements
// are summed.
struct GatherTile {
  int rows, reduced;
  int64_t row_tiles, reduced_tiles, segments;

  explicit GatherTile(const Shape& s) {
    constexpr int64_t kFewBlocks = 96;
    const int64_t count = s.images * s.pixels;
    reduced = s.reduced > 128 && ceil_div(count, 128) * ceil_div(s.reduced, 256) >= kFewBlocks ? 256 : 64;
    reduced_tiles = ceil_div(s.reduced, reduced);
    rows = ceil_div(count, 128) * reduced_tiles >= kFewBlocks ? 128 : 64;
    row_tiles = ceil_div(count, rows);
    segments = (rows - 2) / s.pixels + 2;
  }
  int64_t s_floats(const Shape& s) const { return reduced_tiles * s.images * s.pixels; }
  int64_t pool_floats(const Shape& s) const { return row_tiles * segments * s.channels; }
  int stage_bytes() const { return (rows + reduced) * kStepBytes; }
};

template <class T>
void launch_gather(const GatherTile& tile, bool channels_last, const GatherParams& p, const Execution& execution) {
  const auto run = [&](void (*kernel)(GatherParams)) {
    launch("gather_kernel", kernel, {tile.row_tiles * tile.reduced_tiles}, kTileThreads, p.stages * tile.stage_bytes(),
           execution.stream, p);
  };
  const auto by_lanes = [&]<int rows, int reduced>() {
    channels_last ? run(gather_kernel<T, true, rows, reduced>) : run(gather_kernel<T, false, rows, reduced>);
  };
  if (tile.reduced == 256) by_lanes.template operator()<128, 256>();
  else if (tile.rows == 128) by_lanes.template operator()<128, 64>();
  else by_lanes.template operator()<64, 64>();
}

}  // namespace

int64_t gather_scratch(const Problem& problem) {
  const GatherTile tile(problem.shape);
  return (tile.s_floats(problem.shape) + tile.pool_floats(problem.shape)) * 4;
}

void gather(const Problem& problem, const Forward& f, const void* packed_shrink, const Execution& execution) {
  const Shape& s = problem.shape;
  const Weights& w = problem.weights;
  const GatherTile tile(s);
  GatherParams p{};
  p.x = map_view(problem, f.x);
  p.packed = static_cast<const char*>(packed_shrink);
  p.packed_row_bytes = packed_row_bytes(problem, s.channels);
  p.b_v_shrink = static_cast<const float*>(w.b_v_shrink);
  p.v_collapse = static_cast<const float*>(w.v_collapse);
  p.s_parts = static_cast<float*>(execution.workspace);
  p.pool_parts = p.s_parts + tile.s_floats(s);
  p.words = static_cast<int>(mask_words(s));
  p.relu_mask = reinterpret_cast<uint32_t*>(f.relu_mask);
  p.rows = s.images * s.pixels;
  p.reduced = static_cast<int>(s.reduced);
  p.steps = static_cast<int>(p.packed_row_bytes / kStepBytes);
  p.reduced_tiles = static_cast<int>(tile.reduced_tiles);
  p.segments = static_cast<int>(tile.segments);
  p.stages = stages_that_fit(tile.stage_bytes(), 0, tile.reduced == 256 ? 1 : 2, 4);
  p.tf32x3 = !execution.tf32;
  with_element_type(problem.dtype, [&]<class T>() { launch_gather<T>(tile, problem.channels_last, p, execution); });
  FinishParams finish{};
  finish.s_parts = p.s_parts;
  finish.pool_parts = p.pool_parts;
  finish.b_v_collapse = static_cast<const float*>(w.b_v_collapse);
  finish.rows = p.rows;
  finish.stats_width = stats_width(s);
  finish.stats = static_cast<float*>(f.stats);
  finish.tile_rows = tile.rows;
  finish.channels = p.x.channels;
  finish.reduced_tiles = p.reduced_tiles;
  finish.segments = p.segments;
  finish.pixels = p.x.pixels;
  launch("gather_finish_kernel", gather_finish_kernel, {s.images * ceil_div(s.pixels + s.channels, kTileThreads)},
         kTileThreads, 0, execution.stream, finish);
}

}  // namespace gala::cuda

// gather's backward: the gradients of the local path's weights. All come from T = (ds . relu_mask)^T x [R, C], a
// product over all pixels, and from the sums of ds where a hidden unit was on. The operand ds . relu_mask is made in
// registers.

#include <primitives.cuh>

#include "fragment.cuh"
#include "launchers.h"
#include "relu_mask.cuh"
#include "tile.cuh"
#include "vectors.cuh"

namespace gala::cuda {

constexpr int kChannelTile = 128;

struct ProductParams {
  MapView x;
  const uint32_t* relu_mask;  // [rows, words]
  const float* ds;  // [rows]
  float* t_parts;  // [splits, R, t_stride]
  int64_t rows, t_stride;
  int reduced, words, steps, splits, reduced_tiles, channel_tiles, stages;
  bool tf32x3;
};

// How the warps share a tile [reduced, channels] of T.
template <int reduced>
struct ProductWarps {
  static constexpr int kCols = reduced == 256 ? 2 : 4, kRows = kTileWarps / kCols;
  static constexpr int kRowTiles = reduced / kRows / 16, kColTiles = kChannelTile / kCols / 8;
  GALA_DEVICE static int row() { return warp() / kCols * kRowTiles * 16; }
  GALA_DEVICE static int col() { return warp() % kCols * kColTiles * 8; }
};

// Pixel i's word number `word` of the ReLU mask is stored at i ^ word_key(word), so that the words of one pixel, which
// are copied side by side, lie in different banks.
template <int reduced>
GALA_DEVICE int word_key(int word) {
  return word * (32 / (reduced / 32));
}

template <class T, int reduced>
constexpr int kProductStage = kChannelTile * kStepBytes + kDepth<T> * (reduced / 32 + 1) * 4;

template <class T, bool channels_last, int reduced>
GALA_KERNEL(kTileThreads, reduced == 256 ? 1 : 2)
local_products_kernel(ProductParams p) {
  using Mine = ProductWarps<reduced>;
  constexpr int kDeep = kDepth<T>, kWords = reduced / 32;
  constexpr int kLines = channels_last ? kDeep : kChannelTile, kXBytes = kChannelTile * kStepBytes;
  constexpr int kLineBytes = kXBytes / kLines;
  char* shared = shared_memory<char>();
  const int tile = block_x() / p.reduced_tiles;
  const int first_unit = block_x() % p.reduced_tiles * reduced;
  const int first_channel = tile % p.channel_tiles * kChannelTile, split = tile / p.channel_tiles;
  const int begin = static_cast<int>(int64_t{split} * p.steps / p.splits);
  const int steps = static_cast<int>((split + int64_t{1}) * p.steps / p.splits) - begin;
  ImagePixel first = ImagePixel::of_row(static_cast<uint32_t>(begin) * kDeep, p.x.pixels);  // of the next step to load
  float sums[Mine::kRowTiles][Mine::kColTiles][4] = {};

  const auto load = [&](int step, int stage) {
    if (step >= steps) return;
    const int64_t row = int64_t{begin + step} * kDeep;
    const int rows_left = static_cast<int>(p.rows - row < kDeep ? p.rows - row : kDeep);
    char* to = shared + stage * kProductStage<T, reduced>;
    load_tile<T, channels_last, kLines, kLineBytes>(to, p.x, {first, rows_left, first_channel});
    uint32_t* words = reinterpret_cast<uint32_t*>(to + kXBytes);
    for (int i = thread_index(); i < kDeep * kWords; i += kTileThreads) {
      const int pixel = i / kWords, word = first_unit / 32 + i % kWords;
      copy_async<4>(words + i % kWords * kDeep + (pixel ^ word_key<reduced>(i % kWords)),
                    p.relu_mask + (row + pixel) * p.words + word, pixel < rows_left && word < p.words);
    }
    const int pixel = thread_index();
    if (pixel < kDeep) copy_async<4>(words + kDeep * kWords + pixel, p.ds + row + pixel, pixel < rows_left);
    first = first.after(kDeep, p.x.pixels);
  };
  const auto compute = [&](int, int stage) {
    const char* x = shared + stage * kProductStage<T, reduced>;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(x + kXBytes);
    const float* ds = reinterpret_cast<const float*>(words + kDeep * kWords);
    const auto instruction = [&](int k) {
      Fragment<T, 4> left[Mine::kRowTiles];
      GALA_UNROLL
      for (int i = 0; i < Mine::kRowTiles; i += 2) {
        const int word = Mine::row() / 32 + i / 2;
        ds_where_on<T>(left + i, words + word * kDeep, word_key<reduced>(word), ds, k);
      }
      GALA_UNROLL
      for (int j = 0; j < Mine::kColTiles; j += 2) {
        Fragment<T, 2> right[2];
        right_operands<T, !channels_last, kLineBytes>(right, x, Mine::col() + 8 * j, k);
        GALA_UNROLL
        for (int i = 0; i < Mine::kRowTiles; ++i) {
          multiply<T, 2, 1>(sums, i / 2 * 2, j + i % 2, left + i / 2 * 2, right + i % 2, p.tf32x3);
        }
      }
    };
    if constexpr (std::is_same_v<T, float>) {  // unrolled, it would take more registers than there are
      GALA_ROLL
      for (int k = 0; k < kInstructions; ++k) instruction(k);
    } else {
      GALA_UNROLL
      for (int k = 0; k < kInstructions; ++k) instruction(k);
    }
  };
  pipeline(steps, p.stages, load, [] {}, compute);

  GALA_UNROLL
  for (int i = 0; i < 2 * Mine::kRowTiles; ++i) {
    const int r = first_unit + Mine::row() + 8 * i + lane() / 4;
    float* to = p.t_parts + (int64_t{split} * p.reduced + r) * p.t_stride;
    GALA_UNROLL
    for (int j = 0; j < Mine::kColTiles; ++j) {
      const int c = first_channel + Mine::col() + 8 * j + lane() % 4 * 2;
      const float* from = sums[i / 2][j] + i % 2 * 2;
      if (r < p.reduced && c < p.x.channels)
        store_global(reinterpret_cast<Vec<float, 2>*>(to + c), Vec<float, 2>{{from[0], from[1]}});
    }
  }
}

struct CountParams {
  const uint32_t* relu_mask;  // [rows, words]
  const float* ds;  // [rows]
  float* parts;  // [splits, 32 words + 1]
  int64_t rows;
  int words, splits;
};

// Over a share of the pixels, sums ds where each hidden unit of one word was on, and all ds.
GALA_KERNEL(kTileThreads, 2) local_counts_kernel(CountParams p) {
  float* shared = shared_memory<float>();  // [warps, 33]
  const int word = block_x() % p.words;
  const int64_t split = block_x() / p.words, groups = (p.rows + 31) / 32;
  float on = 0.0f, all = 0.0f;
  for (int64_t group = split * kTileWarps + warp(); group < groups; group += int64_t{p.splits} * kTileWarps) {
    const int64_t row = group * 32 + lane();
    const bool inside = row < p.rows;
    const uint32_t bits = inside ? load_global(p.relu_mask + row * p.words + word) : 0;
    const float ds = inside ? load_global(p.ds + row) : 0.0f;
    all += ds;
    GALA_UNROLL
    for (int i = 0; i < 32; ++i) {
      const float d = shuffle(ds, i);
      if (shuffle(bits, i) >> lane() & 1) on += d;
    }
  }
  for (int mask = 16; mask > 0; mask /= 2) all += shuffle_xor(all, mask);
  store_shared(shared + warp() * 33 + lane(), on);
  if (lane() == 0) store_shared(shared + warp() * 33 + 32, all);
  block_barrier();
  const int index = thread_index();
  if (index > 32 || (index == 32 && word > 0)) return;
  float sum = 0.0f;
  for (int i = 0; i < kTileWarps; ++i) sum += load_shared(shared + i * 33 + index);
  const int at = index < 32 ? word * 32 + index : p.words * 32;
  store_global(p.parts + split * (p.words * 32 + 1) + at, sum);
}

struct LocalGradsParams {
  const float *t_parts, *count_parts;  // the latter null where no bias wants a gradient
  const float *v_shrink, *v_collapse, *b_v_shrink;
  float *grad_v_shrink, *grad_v_collapse, *grad_b_v_shrink, *grad_b_v_collapse;
  int64_t t_stride;
  int channels, reduced, splits, count_splits, count_width;
};

// The gradients from the parts of T and of the counts; one block for each hidden unit.
GALA_KERNEL(kTileThreads, 2) local_grads_kernel(LocalGradsParams p) {
  float* shared = shared_memory<float>();  // [warps, 3]
  const int r = block_x();
  const float v = load_global(p.v_collapse + r);
  float sums[3] = {};  // of v_shrink T, of ds where the unit was on, of all ds
  for (int c = thread_index(); c < p.channels; c += kTileThreads) {
    float t = 0.0f;
    for (int split = 0; split < p.splits; ++split)
      t += load_global(p.t_parts + (int64_t{split} * p.reduced + r) * p.t_stride + c);
    const int64_t at = int64_t{r} * p.channels + c;
    store_global(p.grad_v_shrink + at, v * t);
    sums[0] += load_global(p.v_shrink + at) * t;
  }
  if (p.count_parts)
    for (int split = thread_index(); split < p.count_splits; split += kTileThreads) {
      const float* part = p.count_parts + int64_t{split} * p.count_width;
      sums[1] += load_global(part + r);
      sums[2] += load_global(part + p.count_width - 1);
    }
  GALA_UNROLL
  for (int i = 0; i < 3; ++i) {
    for (int mask = 16; mask > 0; mask /= 2) sums[i] += shuffle_xor(sums[i], mask);
    if (lane() == 0) store_shared(shared + warp() * 3 + i, sums[i]);
  }
  block_barrier();
  if (thread_index() > 0) return;
  float total[3] = {};
  for (int i = 0; i < 3 * kTileWarps; ++i) total[i % 3] += load_shared(shared + i);
  store_global(p.grad_v_collapse + r,
               p.b_v_shrink ? std::fma(load_global(p.b_v_shrink + r), total[1], total[0]) : total[0]);
  if (p.grad_b_v_shrink) store_global(p.grad_b_v_shrink + r, v * total[1]);
  if (p.grad_b_v_collapse && r == 0) store_global(p.grad_b_v_collapse, total[2]);
}

namespace {

// How the products are divided between blocks. It depends on the shape alone, since it decides in which order elements
// are summed.
struct ProductTiles {
  int reduced;
  int64_t rows, reduced_tiles, channel_tiles, steps, splits, t_stride;
  int count_splits, count_width;

  explicit ProductTiles(const Problem& problem) {
    const Shape& s = problem.shape;
    reduced = s.reduced > 128 ? 256 : 64;
    rows = s.images * s.pixels;
    reduced_tiles = ceil_div(s.reduced, reduced);
    channel_tiles = ceil_div(s.channels, kChannelTile);
    steps = ceil_div(rows, kStepBytes / element_bytes(problem.dtype));
    const int64_t wanted = (reduced == 256 ? 128 : 256) / (reduced_tiles * channel_tiles), most = steps / 4;
    splits = wanted < most ? wanted : most;
    if (splits < 1) splits = 1;
    t_stride = ceil_div(s.channels, 2) * 2;
    count_splits = rows < 64 * 4096 ? static_cast<int>(ceil_div(rows, 4096)) : 64;
    count_width = static_cast<int>(mask_words(s)) * 32 + 1;
  }
  int64_t t_floats(const Shape& s) const { return splits * s.reduced * t_stride; }
};

template <class T>
void launch_products(const Problem& problem, int reduced, ProductParams p, const Execution& execution) {
  const auto run = [&]<bool channels_last, int reduced>() {
    p.stages = stages_that_fit(kProductStage<T, reduced>, 0, reduced == 256 ? 1 : 2, 4);
    launch("local_products_kernel", local_products_kernel<T, channels_last, reduced>,
           {int64_t{p.splits} * p.channel_tiles * p.reduced_tiles}, kTileThreads, p.stages * kProductStage<T, reduced>,
           execution.stream, p);
  };
  if (problem.channels_last)
    reduced == 256 ? run.template operator()<true, 256>() : run.template operator()<true, 64>();
  else reduced == 256 ? run.template operator()<false, 256>() : run.template operator()<false, 64>();
}

}  // namespace

int64_t local_grads_scratch(const Problem& problem) {
  const ProductTiles tiles(problem);
  return (tiles.t_floats(problem.shape) + int64_t{tiles.count_splits} * tiles.count_width) * 4;
}

void local_grads(const Problem& problem, const Backward& b, const float* ds, const Execution& execution) {
  const Shape& s = problem.shape;
  const Weights& w = problem.weights;
  const ProductTiles tiles(problem);
  ProductParams p{};
  p.x = map_view(problem, b.x);
  p.relu_mask = reinterpret_cast<const uint32_t*>(b.relu_mask);
  p.ds = ds;
  p.t_parts = static_cast<float*>(execution.workspace);
  p.rows = tiles.rows;
  p.t_stride = tiles.t_stride;
  p.reduced = static_cast<int>(s.reduced);
  p.words = static_cast<int>(mask_words(s));
  p.steps = static_cast<int>(tiles.steps);
  p.splits = static_cast<int>(tiles.splits);
  p.reduced_tiles = static_cast<int>(tiles.reduced_tiles);
  p.channel_tiles = static_cast<int>(tiles.channel_tiles);
  p.tf32x3 = !execution.tf32;
  with_element_type(problem.dtype, [&]<class T>() { launch_products<T>(problem, tiles.reduced, p, execution); });

  LocalGradsParams grads{};
  grads.t_parts = p.t_parts;
  grads.v_shrink = static_cast<const float*>(w.v_shrink);
  grads.v_collapse = static_cast<const float*>(w.v_collapse);
  grads.b_v_shrink = static_cast<const float*>(w.b_v_shrink);
  grads.grad_v_shrink = static_cast<float*>(b.grads.v_shrink);
  grads.grad_v_collapse = static_cast<float*>(b.grads.v_collapse);
  grads.grad_b_v_shrink = static_cast<float*>(b.grads.b_v_shrink);
  grads.grad_b_v_collapse = static_cast<float*>(b.grads.b_v_collapse);
  grads.t_stride = p.t_stride;
  grads.channels = p.x.channels;
  grads.reduced = p.reduced;
  grads.splits = p.splits;
  if (w.b_v_shrink || grads.grad_b_v_collapse) {
    const CountParams counts{p.relu_mask, ds, p.t_parts + tiles.t_floats(s), p.rows, p.words, tiles.count_splits};
    launch("local_counts_kernel", local_counts_kernel, {tiles.count_splits * int64_t{p.words}}, kTileThreads,
           kTileWarps * 33 * 4, execution.stream, counts);
    grads.count_parts = counts.parts;
    grads.count_splits = counts.splits;
    grads.count_width = tiles.count_width;
  }
  launch("local_grads_kernel", local_grads_kernel, {s.reduced}, kTileThreads, kTileWarps * 3 * 4, execution.stream,
         grads);
}

}  // namespace gala::cuda

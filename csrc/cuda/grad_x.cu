// gather's backward: grad_x = grad_sum A + dp / HW + ds (relu_mask . (v_collapse v_shrink)), where grad_sum is the
// gradient of x A + residual. The attention A is computed anew; the mask becomes an operand of the product in
// registers.

#include <primitives.cuh>

#include "fragment.cuh"
#include "launchers.h"
#include "relu_mask.cuh"
#include "squash.cuh"
#include "tile.cuh"
#include "vectors.cuh"

namespace gala::cuda {

constexpr int kGradTile = 128;  // pixels, and channels, of a tile
template <class T>
constexpr int kStepWords = kDepth<T> / 32;  // of a pixel's mask

struct GradXParams {
  MapView grad_sum, grad_x;
  const char* packed;  // v_collapse times v_shrink, [C, depth]
  int64_t packed_row_bytes;
  const uint32_t* relu_mask;  // [rows, words]
  const float *s, *ds, *gates, *dp;  // s by images of stats_width; [rows]; [images, 2, C]; [images, C]
  int64_t stats_width, rows;
  int words, steps, channel_tiles, stages;
  bool tf32x3;
  Squash squash;
};

// How the warps share a tile: with channels_last its rows are pixels and its columns channels, else the other way
// round, so that neighbouring columns are neighbours in memory. Either way a warp holds 32 pixels and 64 channels.
template <bool channels_last>
struct GradWarps {
  static constexpr int kCols = channels_last ? 2 : 4;
  static constexpr int kRowTiles = channels_last ? 2 : 4, kColTiles = channels_last ? 8 : 4;
  GALA_DEVICE static int row() { return warp() / kCols * kRowTiles * 16; }
  GALA_DEVICE static int col() { return warp() % kCols * kColTiles * 8; }
};

template <class T, bool channels_last, int rows, int cols>
GALA_DEVICE void multiply_mask(float (&sums)[rows][cols][4], const char* weights, const uint32_t* words, bool tf32x3) {
  using Mine = GradWarps<channels_last>;
  using Bits = std::conditional_t<std::is_same_v<T, float>, Exact, T>;
  // unrolled it takes more registers than two blocks have
  GALA_ROLL
  for (int k = 0; k < kInstructions; ++k) {
    if constexpr (channels_last) {
      Fragment<Bits, 4> left[rows];
      GALA_UNROLL
      for (int i = 0; i < 2 * rows; ++i) {
        auto& registers = left[i / 2].high;
        mask_as_numbers<T, kGradTile>(words, Mine::row() + 8 * i + lane() / 4, k, registers[i % 2],
                                      registers[i % 2 + 2]);
      }
      GALA_UNROLL
      for (int j = 0; j < cols; j += 2) {
        Fragment<T, 2> right[2];
        right_operands<T, true, kStepBytes>(right, weights, Mine::col() + 8 * j, k);
        GALA_UNROLL
        for (int i = 0; i < 2; ++i) multiply<T, rows, 1>(sums, 0, j + i, left, right + i, tf32x3);
      }
    } else {
      Fragment<Bits, 2> right[cols];
      GALA_UNROLL
      for (int j = 0; j < cols; ++j)
        mask_as_numbers<T, kGradTile>(words, Mine::col() + 8 * j + lane() / 4, k, right[j].high[0], right[j].high[1]);
      GALA_UNROLL
      for (int i = 0; i < rows; ++i) {
        const auto left = left_operand<T, true, kStepBytes>(weights, Mine::row() + 16 * i, k);
        multiply<T, 1, cols>(sums, i, 0, &left, right, tf32x3);
      }
    }
  }
}

// Computes the gradient from the products and writes it into the tile of grad_sum. A thread holds the elements of its
// rows and columns in pairs of neighbours.
template <class T, bool channels_last, int rows, int cols>
GALA_DEVICE void finish_grad_x(const GradXParams& p, const float (&sums)[rows][cols][4], const TilePlace& place,
                               char* sum_tile, const float* s, const float* ds) {
  using Mine = GradWarps<channels_last>;
  constexpr int kLineBytes = kGradTile * static_cast<int>(sizeof(T));
  constexpr int kPixels = channels_last ? 2 * rows : 2 * cols, kOuter = channels_last ? cols : 2 * rows;
  const auto row = [](int i) { return Mine::row() + 8 * i + lane() / 4; };
  const auto col = [](int j) { return Mine::col() + 8 * j + lane() % 4 * 2; };
  float pixel_s[kPixels], pixel_ds[kPixels];
  uint32_t image[kPixels];  // from the tile's first one on
  GALA_UNROLL
  for (int i = 0; i < kPixels; ++i) {
    const int pixel = channels_last ? row(i) : col(i / 2) + i % 2;
    pixel_s[i] = load_shared(s + pixel);
    pixel_ds[i] = load_shared(ds + pixel);
    image[i] = p.grad_sum.pixels.divide(place.first.pixel + (pixel < place.rows ? pixel : place.rows - 1));
  }
  GALA_UNROLL
  for (int outer = 0; outer < kOuter; ++outer) {
    warp_barrier();  // the loads of all turns at once would take more registers than there are
    float alpha[2] = {}, beta[2] = {}, share[2] = {};
    uint32_t loaded = ~0u;
    GALA_UNROLL
    for (int inner = 0; inner < 2 * rows * cols / kOuter; ++inner) {
      const int i = channels_last ? inner : outer, j = channels_last ? outer : inner;
      // row(i) has the swizzle of row(0); told so, the compiler holds one address in place of one for each row
      char* at = tile_at<kLineBytes>(sum_tile + 8 * i * kLineBytes, row(0), col(j) * static_cast<int>(sizeof(T)));
      float value[2];
      unpack<T>(load_shared(reinterpret_cast<const Packed<T, 2>*>(at)), value);
      GALA_UNROLL
      for (int e = 0; e < 2; ++e) {
        const int pixel = channels_last ? i : 2 * j + e, channel = channels_last ? e : 0;
        if (image[pixel] != loaded) {
          loaded = image[pixel];
          GALA_UNROLL
          for (int k = 0; k < (channels_last ? 2 : 1); ++k) {
            const int c = place.channel + (channels_last ? col(j) + k : row(i));
            if (c >= p.grad_sum.channels) continue;
            const int64_t of_image = int64_t{place.first.image + loaded} * p.grad_sum.channels;
            alpha[k] = load_global(p.gates + 2 * of_image + c);
            beta[k] = load_global(p.gates + 2 * of_image + p.grad_sum.channels + c);
            share[k] = load_global(p.dp + of_image + c);
          }
        }
        const float attention = squash<T>(std::fma(beta[channel], pixel_s[pixel], alpha[channel]), p.squash);
        const float rest = std::fma(sums[i / 2][j][i % 2 * 2 + e], pixel_ds[pixel], share[channel]);
        value[e] = std::fma(value[e], attention, rest);
      }
      store_shared(reinterpret_cast<Packed<T, 2>*>(at), pack<T>(value));
    }
  }
}

template <class T>
constexpr int kGradStage = kGradTile * (kStepBytes + kStepWords<T> * 4);
template <class T>
constexpr int kGradFixed = kGradTile * (kGradTile * static_cast<int>(sizeof(T)) + 2 * 4);

template <class T, bool channels_last>
GALA_KERNEL(kTileThreads, 2)
grad_x_kernel(GradXParams p) {
  using Mine = GradWarps<channels_last>;
  constexpr int kLineBytes = kGradTile * static_cast<int>(sizeof(T)), kWeightBytes = kGradTile * kStepBytes;
  char* shared = shared_memory<char>();
  char* sum_tile = shared + p.stages * kGradStage<T>;
  float *s = reinterpret_cast<float*>(sum_tile + kGradTile * kLineBytes), *ds = s + kGradTile;
  const int first_row = block_x() / p.channel_tiles * kGradTile;
  const int rows_left = static_cast<int>(p.rows - first_row < kGradTile ? p.rows - first_row : kGradTile);
  const TilePlace place{ImagePixel::of_row(static_cast<uint32_t>(first_row), p.grad_sum.pixels), rows_left,
                        block_x() % p.channel_tiles * kGradTile};
  float sums[Mine::kRowTiles][Mine::kColTiles][4] = {};

  const auto load = [&](int step, int stage) {
    if (step >= p.steps) return;
    const int pixel = thread_index() % kGradTile, half = thread_index() / kGradTile;
    const int word = step * kStepWords<T> + half;
    char* to = shared + stage * kGradStage<T>;
    load_packed<kGradTile>(to, p.packed, p.packed_row_bytes, place.channel, p.grad_sum.channels, step);
    if (half < kStepWords<T>)
      copy_async<4>(to + kWeightBytes + thread_index() * 4, p.relu_mask + int64_t{first_row + pixel} * p.words + word,
                    pixel < rows_left && word < p.words);
  };
  const auto load_once = [&] {
    const int pixel = thread_index() % kGradTile;
    const bool inside = pixel < rows_left;
    load_tile<T, channels_last, kGradTile, kLineBytes>(sum_tile, p.grad_sum, place);
    const ImagePixel at = place.first.after(pixel, p.grad_sum.pixels);
    if (thread_index() < kGradTile) copy_async<4>(s + pixel, p.s + at.image * p.stats_width + at.pixel, inside);
    else copy_async<4>(ds + pixel, p.ds + first_row + pixel, inside);
  };
  const auto compute = [&](int, int stage) {
    const char* weights = shared + stage * kGradStage<T>;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(weights + kWeightBytes);
    multiply_mask<T, channels_last>(sums, weights, words, p.tf32x3);
  };
  pipeline(p.steps, p.stages, load, load_once, compute);
  finish_grad_x<T, channels_last>(p, sums, place, sum_tile, s, ds);
  block_barrier();
  store_tile<T, channels_last, kGradTile, kLineBytes>(sum_tile, p.grad_x, place);
}

namespace {

template <class T>
void launch_grad_x(const Problem& problem, GradXParams p, const Execution& execution) {
  p.stages = stages_that_fit(kGradStage<T>, kGradFixed<T>, 2, p.steps < 2 ? 2 : 3);
  launch("grad_x_kernel", problem.channels_last ? grad_x_kernel<T, true> : grad_x_kernel<T, false>,
         {ceil_div(p.rows, kGradTile) * p.channel_tiles}, kTileThreads, p.stages * kGradStage<T> + kGradFixed<T>,
         execution.stream, p);
}

}  // namespace

void grad_x(const Problem& problem, const Backward& b, const void* packed_local, const float* gates, const float* ds,
            const float* dp, const Execution& execution) {
  const Shape& s = problem.shape;
  GradXParams p{};
  p.grad_sum = map_view(problem, b.out.data ? b.grad_residual : b.grad_out);
  p.grad_x = map_view(problem, b.grad_x);
  p.packed = static_cast<const char*>(packed_local);
  p.packed_row_bytes = packed_row_bytes(problem, s.reduced);
  p.words = static_cast<int>(mask_words(s));
  p.relu_mask = reinterpret_cast<const uint32_t*>(b.relu_mask);
  p.stats_width = stats_width(s);
  p.s = static_cast<const float*>(b.stats);
  p.ds = ds;
  p.gates = gates;
  p.dp = dp;
  p.rows = s.images * s.pixels;
  p.steps = static_cast<int>(p.packed_row_bytes / kStepBytes);
  p.channel_tiles = static_cast<int>(ceil_div(s.channels, kGradTile));
  p.tf32x3 = !execution.tf32;
  p.squash = problem.squash;
  with_element_type(problem.dtype, [&]<class T>() { launch_grad_x<T>(problem, p, execution); });
}

}  // namespace gala::cuda

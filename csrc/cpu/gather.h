// gather: x -> pooled mean p, local map s, ReLU mask.
#pragma once

#include "blocks.h"
#include "gemm.h"

namespace gala::cpu::GALA_ISA {

constexpr int kWord = 32;

// One bit a lane: whether the lane is set.
template <class A, class Ints>
inline uint32_t lane_bits(Ints set) {
#if defined(__AVX512DQ__)
  if constexpr (sizeof(A) == 4) return _mm512_movepi32_mask((__m512i)set);
  else return _mm512_movepi64_mask((__m512i)set);
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes<A>; ++i) bits |= (set[i] ? 1u : 0u) << i;
  return bits;
#endif
}

// Copies a block of x [N, C, HW] into panels [block rows, C].
template <class T, class A = Acc<T>>
void pack_block(const Problem& problem, const FeatureMap& x, const Block& block, A* panels) {
  for (int64_t i = 0; i < block.images; ++i)
    pack(at<const T>(x, block.image + i, 0, block.pixel), problem.channels_last ? x.pixel_stride : 1,
         problem.channels_last ? 1 : x.channel_stride, block.pixels, 0, problem.shape.channels, panels, block.rows(),
         i * block.pixels);
}

// sums[cols] (+)= the sum over rows [first, first + count) of panels [rows, cols].
template <class A>
void sum_rows(const A* panels, int64_t rows, int64_t cols, int64_t first, int64_t count, A* sums, bool add) {
  constexpr int64_t L = kLanes<A>, n = kPanel / L;
  for (int64_t col = 0; col < cols; col += kPanel) {
    const A* panel = panels + col * rows + first * kPanel;
    Vec<A> total[n] = {};
    for (int64_t row = 0; row < count; ++row)
      for (int64_t i = 0; i < n; ++i) total[i] += load(panel + row * kPanel + i * L);
    for (int64_t i = 0; i < n && col + i * L < cols; ++i) {
      A* to = sums + col + i * L;
      const int64_t left = cols - col - i * L;
      store(to, add ? load(to, left) + total[i] : total[i], left);
    }
  }
}

// From the hidden layer of one pixel, h [R] before bias and ReLU: its sign pattern, and the local map's value.
template <class A>
A collapse(const A* h, const A* bias, const A* v_collapse, int64_t reduced, int32_t* relu_mask) {
  constexpr int64_t L = kLanes<A>;
  Vec<A> sum = {};
  for (int64_t word = 0; word < reduced; word += kWord) {
    uint32_t pattern = 0;
    for (int64_t r = word; r < smaller(word + kWord, reduced); r += L) {
      const int64_t count = reduced - r;
      Vec<A> hidden = load(h + r, count);
      if (bias) hidden += load(bias + r, count);
      sum += relu<A>(hidden) * load(v_collapse + r, count);
      pattern |= lane_bits<A>(~(hidden <= A(0))) << (r - word);
    }
    if (relu_mask)
      relu_mask[word / kWord] =
          static_cast<int32_t>(reduced - word < kWord ? pattern & ((1u << (reduced - word)) - 1) : pattern);
  }
  return sum_lanes<A>(sum);
}

// relu(h + bias) of one pixel, h [R].
template <class A>
void keep_hidden(const A* h, const A* bias, int64_t reduced, A* hidden) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t r = 0; r < reduced; r += L) {
    const int64_t count = reduced - r;
    Vec<A> value = load(h + r, count);
    if (bias) value += load(bias + r, count);
    store(hidden + r, relu<A>(value), count);
  }
}

// Copies one pixel, `channels` values side by side, into row `row` of panels [rows, C] and adds it to sums [C].
template <class T, class A = Acc<T>>
void pack_and_add(const T* from, int64_t channels, A* panels, int64_t rows, int64_t row, A* sums) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t c = 0; c < channels; c += kPanel) {
    A* to = panels + c * rows + row * kPanel;
    auto move = [&](int64_t i, int64_t count) {
      const Vec<A> values = load(from + c + i, count);
      store(to + i, values);
      store(sums + c + i, load(sums + c + i, count) + values, count);
    };
    if (channels - c >= kPanel) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kPanel; i += L) move(i, L);
    } else {
      for (int64_t i = 0; i < kPanel; i += L) c + i < channels ? move(i, channels - c - i) : store(to + i, Vec<A>{});
    }
  }
}

// With channels_last: packs a block, strip by strip of a register tile's rows, sums its pixels into pool_sums and
// multiplies the first columns of the hidden layer, fetching the next strip from memory meanwhile. Returns how many
// columns are done.
template <class T, class A = Acc<T>>
int64_t gather_strips(const Problem& problem, const FeatureMap& x, const Block& block, const A* v_panels, A* panels,
                      A* hidden, A* pool_sums, int64_t pool_stride) {
  const Shape& s = problem.shape;
  const int64_t rows = block.rows(), cols = smaller(s.reduced, kTileCols<A>);
  for (int64_t i = 0; i < block.images; ++i)
    for (int64_t c = 0; c < s.channels; ++c) pool_sums[i * pool_stride + c] = 0;
  for (int64_t first = 0; first < rows; first += kTileRows) {
    const int64_t end = smaller(rows, first + kTileRows);
    const T* from = nullptr;
    for (int64_t row = first; row < end; ++row) {
      const int64_t i = row / block.pixels;
      from = at<const T>(x, block.image + i, 0, block.pixel + row % block.pixels);
      pack_and_add(from, s.channels, panels, rows, row, pool_sums + i * pool_stride);
    }
    const A* strip = panels + first * kPanel;
    A* to = hidden + first * s.reduced;
    if (end - first == kTileRows)
      tile<A, kTileRows, false, true>(strip, rows * kPanel, v_panels, s.channels, to, s.reduced, cols, false,
                                      reinterpret_cast<const char*>(from + x.pixel_stride));
    else
      tile_column<A, kTileRows, false>(strip, rows * kPanel, end - first, v_panels, s.channels, to, s.reduced, cols,
                                       false);
  }
  return cols;
}

template <class A>
struct GatherTask {
  int64_t rows, channels, reduced;
  A *x = nullptr, *hidden = nullptr;  // x in panels [rows, C]; the local hidden layer [rows, R]
  void place(Arrays<A>& arrays) {
    x = arrays.take(panels_size(rows, channels));
    hidden = arrays.take(rows * reduced);
  }
};

// One block: its part of the pooled sum into pool_sums [images of the block, C], and its s and relu_mask, or where
// `hidden` [N, HW, R] is given the hidden layer instead.
template <class T, class A = Acc<T>>
void gather_block(const Problem& problem, const Forward& f, const Block& block, const A* v_panels, A* pool_sums,
                  int64_t pool_stride, A* hidden) {
  const Shape& s = problem.shape;
  const int64_t rows = block.rows(), words = ceil_div(s.reduced, kWord);
  GatherTask<A> task{rows, s.channels, s.reduced};
  allocate<A>(Scratch::task, task);
  int64_t done = 0;
  if (problem.channels_last) {
    done = gather_strips<T>(problem, f.x, block, v_panels, task.x, task.hidden, pool_sums, pool_stride);
  } else {
    pack_block<T>(problem, f.x, block, task.x);
    for (int64_t i = 0; i < block.images; ++i)
      sum_rows(task.x, rows, s.channels, i * block.pixels, block.pixels, pool_sums + i * pool_stride, false);
  }
  multiply(task.x, rows, v_panels, s.channels, done, s.reduced, task.hidden, s.reduced, false);
  const A shift = problem.weights.b_v_collapse ? *as<A>(problem.weights.b_v_collapse) : A(0);
  const A* bias = as<A>(problem.weights.b_v_shrink);
  for (int64_t i = 0; i < block.images; ++i) {
    const Stats<A> stats(f.stats, s, block.image + i);
    for (int64_t pixel = 0; pixel < block.pixels; ++pixel) {
      const A* h = task.hidden + (i * block.pixels + pixel) * s.reduced;
      const int64_t at_pixel = block.pixel + pixel, row = (block.image + i) * s.pixels + at_pixel;
      if (hidden) {
        keep_hidden(h, bias, s.reduced, hidden + row * s.reduced);
        continue;
      }
      int32_t* relu_mask = f.relu_mask ? f.relu_mask + row * words : nullptr;
      stats.s[at_pixel] = shift + collapse(h, bias, as<A>(problem.weights.v_collapse), s.reduced, relu_mask);
    }
  }
}

// The images [first, end): p into their statistics, and what gather_block gives. pool [images, blocks of an image, C]
// is scratch.
template <class T, class A = Acc<T>>
void gather_images(const Problem& problem, const Forward& f, const Blocks& blocks, int64_t first, int64_t end,
                   const A* v_panels, A* pool, A* hidden = nullptr) {
  const Shape& s = problem.shape;
  const int64_t parts = blocks.per_image();
  parallel(problem, blocks.count(first, end), [&](int64_t i) {
    const Block block = blocks.get(first, end, i);
    A* sums = pool + ((block.image - first) * parts + i % parts) * s.channels;
    gather_block<T>(problem, f, block, v_panels, sums, parts * s.channels, hidden);
  });
  const A share = A(1) / static_cast<A>(s.pixels);
  for (int64_t image = first; image < end; ++image) {
    A* p = Stats<A>(f.stats, s, image).p;
    sum_matrix_rows(pool + (image - first) * parts * s.channels, parts, s.channels, p);
    for (int64_t c = 0; c < s.channels; ++c) p[c] *= share;
  }
}

}  // namespace gala::cpu::GALA_ISA

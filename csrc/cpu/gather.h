// gather: x -> pooled mean p, local map s, ReLU mask; and its backward, which adds the local path's part to grad_x.
#pragma once

#include "blocks.h"
#include "gemm.h"
#include "scale.h"

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

// The lanes of `value` whose bit is set, else 0.
template <class A>
inline Vec<A> where_bits(uint32_t bits, A value) {
  if constexpr (sizeof(A) == 4) {
    typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
    Ints lane;
    for (int i = 0; i < kLanes<A>; ++i) lane[i] = 1 << i;
    return (Ints(lane) & int32_t(bits)) != 0 ? splat<A>(value) : Vec<A>{};
  } else {
    typedef int64_t Ints __attribute__((vector_size(kVectorBytes)));
    Ints lane;
    for (int i = 0; i < kLanes<A>; ++i) lane[i] = int64_t(1) << i;
    return (Ints(lane) & int64_t(bits)) != 0 ? splat<A>(value) : Vec<A>{};
  }
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

// One block: its part of the pooled sum into pool_sums [images of the block, C], its s and relu_mask.
template <class T, class A = Acc<T>>
void gather_block(const Problem& problem, const Forward& f, const Block& block, const A* v_panels, A* pool_sums,
                  int64_t pool_stride) {
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
  for (int64_t i = 0; i < block.images; ++i) {
    const Stats<A> stats(f.stats, s, block.image + i);
    for (int64_t pixel = 0; pixel < block.pixels; ++pixel) {
      const int64_t at_pixel = block.pixel + pixel;
      int32_t* relu_mask = f.relu_mask ? f.relu_mask + ((block.image + i) * s.pixels + at_pixel) * words : nullptr;
      stats.s[at_pixel] =
          shift + collapse(task.hidden + (i * block.pixels + pixel) * s.reduced, as<A>(problem.weights.b_v_shrink),
                           as<A>(problem.weights.v_collapse), s.reduced, relu_mask);
    }
  }
}

template <class A>
struct GatherBackwardTask {
  int64_t rows, channels, reduced;
  A *x = nullptr, *ds_bits = nullptr,
    *local = nullptr;  // panels [rows, C] and [rows, R]; the local path's part of grad_x [rows, C]
  void place(Arrays<A>& arrays) {
    x = arrays.take(panels_size(rows, channels));
    ds_bits = arrays.take(panels_size(rows, reduced));
    local = arrays.take(rows * channels);
  }
};

// Row `row` of panels [rows, R]: ds where the hidden unit was on, else 0.
template <class A>
void unpack_mask(A ds, const int32_t* relu_mask, int64_t reduced, A* panels, int64_t rows, int64_t row) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t r = 0; r < reduced; r += L) {
    const uint32_t pattern = static_cast<uint32_t>(relu_mask[r / kWord]) >> (r % kWord);
    store(panels + r / kPanel * kPanel * rows + row * kPanel + r % kPanel, where_bits<A>(pattern, ds));
  }
}

// One image's part of a block: grad_x += dp / HW + the local path's part. Storage narrower than the accumulation type
// holds no d A yet: it is computed anew, since rounding it twice would show.
template <class T, Squash squash, class A = Acc<T>>
void finish_grad_x(const Problem& problem, const Backward& b, int64_t image, int64_t pixel, int64_t pixels,
                   const Gates<A>& gates, const A* s, const A* dp, const A* local) {
  constexpr int64_t L = kLanes<A>;
  const int64_t channels = problem.shape.channels;
  const A share = A(1) / static_cast<A>(problem.shape.pixels);
  const FeatureMap& grad = b.out.data ? b.grad_residual : b.grad_out;
  auto finish = [&](T* to, const T* d, Vec<A> alpha, Vec<A> beta, Vec<A> si, Vec<A> rest, int64_t count) {
    if constexpr (sizeof(T) == sizeof(A)) store(to, load(to, count) + rest, count);
    else store(to, load(d, count) * apply<squash, A>(alpha + beta * si) + rest, count);
  };
  if (problem.channels_last) {
    for (int64_t i = 0; i < pixels; ++i) {
      T* to = at<T>(b.grad_x, image, 0, pixel + i);
      const T* d = at<T>(grad, image, 0, pixel + i);
      for (int64_t c = 0; c < channels; c += L) {
        const int64_t count = channels - c;
        finish(to + c, d + c, load(gates.alpha + c, count), load(gates.beta + c, count), splat<A>(s[i]),
               load(local + i * channels + c, count) + load(dp + c, count) * share, count);
      }
    }
  } else {
    for (int64_t c = 0; c < channels; c += L)
      for (int64_t i = 0; i < pixels; i += L) {
        const int64_t count = pixels - i;
        Vec<A> square[L];
        for (int64_t j = 0; j < L; ++j)
          square[j] = i + j < pixels ? load(local + (i + j) * channels + c, channels - c) : Vec<A>{};
        transpose<A>(square);
        for (int64_t j = 0; j < smaller(L, channels - c); ++j)
          finish(at<T>(b.grad_x, image, c + j, pixel + i), at<T>(grad, image, c + j, pixel + i),
                 splat<A>(gates.alpha[c + j]), splat<A>(gates.beta[c + j]), load(s + i, count),
                 square[j] + dp[c + j] * share, count);
      }
  }
}

// One block: sets or adds to t [R, C] and counts [R] (null where no weight needs a gradient), finishes grad_x where
// wanted.
template <class T, Squash squash, class A = Acc<T>>
void gather_backward_block(const Problem& problem, const Backward& b, const Block& block, const A* shrink, const A* ds,
                           const A* alpha, const A* beta, const A* dp, A* t, A* counts, bool add) {
  const Shape& s = problem.shape;
  const int64_t rows = block.rows(), words = ceil_div(s.reduced, kWord);
  GatherBackwardTask<A> task{rows, s.channels, s.reduced};
  allocate<A>(Scratch::task, task);
  for (int64_t i = 0, row = 0; i < block.images; ++i)
    for (int64_t pixel = 0; pixel < block.pixels; ++pixel, ++row) {
      const int64_t from = (block.image + i) * s.pixels + block.pixel + pixel;
      unpack_mask(ds[from], b.relu_mask + from * words, s.reduced, task.ds_bits, rows, row);
    }
  if (t) {
    pack_block<T>(problem, b.x, block, task.x);
    multiply_transposed(task.ds_bits, 0, s.reduced, task.x, rows, s.channels, t, s.channels, add);
    sum_rows(task.ds_bits, rows, s.reduced, 0, rows, counts, add);
  }
  if (!b.grad_x.data) return;
  multiply(task.ds_bits, rows, shrink, s.reduced, 0, s.channels, task.local, s.channels, false);
  for (int64_t i = 0; i < block.images; ++i) {
    const int64_t offset = i * s.channels;
    finish_grad_x<T, squash>(problem, b, block.image + i, block.pixel, block.pixels, {alpha + offset, beta + offset},
                             Stats<A>(b.stats, s, block.image + i).s + block.pixel, dp + offset,
                             task.local + i * block.pixels * s.channels);
  }
}

}  // namespace gala::cpu::GALA_ISA

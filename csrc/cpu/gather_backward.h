// gather's backward, which adds the local path's part to grad_x, and the sums of its weights' gradients.
#pragma once

#include "gather.h"
#include "scale.h"

namespace gala::cpu::GALA_ISA {

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

template <class A>
struct GatherBackwardTask {
  int64_t rows, channels, reduced;
  A *x = nullptr, *grad_hidden = nullptr,
    *local = nullptr;  // panels [rows, C] and [rows, R]; the local path's part of grad_x [rows, C]
  void place(Arrays<A>& arrays) {
    x = arrays.take(panels_size(rows, channels));
    grad_hidden = arrays.take(panels_size(rows, reduced));
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

// What the gather's backward sums up, each group of blocks its own part, in order: t [groups, R, C] and counts
// [groups, R], without groups where no weight needs a gradient.
template <class A>
struct LocalSums {
  int64_t groups;
  A *t, *counts;
};

// One block: sets or adds to t [R, C] and counts [R] (null where no weight needs a gradient), finishes grad_x where
// wanted. `fill` writes the gradient of a pixel's hidden layer into a row of panels [rows, R], whose product with
// `shrink` is the local path's part of grad_x.
template <class T, Squash squash, class Fill, class A = Acc<T>>
void gather_backward_block(const Problem& problem, const Backward& b, const Block& block, const A* shrink,
                           const Fill& fill, const Gates<A>& gates, const A* dp, A* t, A* counts, bool add) {
  const Shape& s = problem.shape;
  const int64_t rows = block.rows();
  GatherBackwardTask<A> task{rows, s.channels, s.reduced};
  allocate<A>(Scratch::task, task);
  for (int64_t i = 0, row = 0; i < block.images; ++i)
    for (int64_t pixel = 0; pixel < block.pixels; ++pixel, ++row)
      fill((block.image + i) * s.pixels + block.pixel + pixel, task.grad_hidden, rows, row);
  if (t) {
    pack_block<T>(problem, b.x, block, task.x);
    multiply_transposed(task.grad_hidden, 0, s.reduced, task.x, rows, s.channels, t, s.channels, add);
    sum_rows(task.grad_hidden, rows, s.reduced, 0, rows, counts, add);
  }
  if (!b.grad_x.data) return;
  multiply(task.grad_hidden, rows, shrink, s.reduced, 0, s.channels, task.local, s.channels, false);
  for (int64_t i = 0; i < block.images; ++i)
    finish_grad_x<T, squash>(problem, b, block.image + i, block.pixel, block.pixels, gates.of(i, s.channels),
                             Stats<A>(b.stats, s, block.image + i).s + block.pixel, dp + i * s.channels,
                             task.local + i * block.pixels * s.channels);
}

// The images [first, end), whose gates and dp [images, C] these are: grad_x, and their part of the sums.
template <class T, Squash squash, class Fill, class A = Acc<T>>
void gather_images_backward(const Problem& problem, const Backward& b, const Blocks& blocks, int64_t first, int64_t end,
                            const A* shrink, const Fill& fill, const Gates<A>& gates, const A* dp,
                            const LocalSums<A>& sums) {
  const Shape& s = problem.shape;
  const int64_t tasks = blocks.count(first, end), runs = sums.groups ? sums.groups : tasks;
  parallel(problem, runs, [&](int64_t run) {
    A* t = sums.groups ? sums.t + run * s.reduced * s.channels : nullptr;
    A* counts = sums.groups ? sums.counts + run * s.reduced : nullptr;
    const int64_t begin = run * tasks / runs;
    for (int64_t i = begin; i < (run + 1) * tasks / runs; ++i) {
      const Block block = blocks.get(first, end, i);
      const int64_t image = block.image - first;
      gather_backward_block<T, squash>(problem, b, block, shrink, fill, gates.of(image, s.channels),
                                       dp + image * s.channels, t, counts, first > 0 || i > begin);
    }
  });
}

}  // namespace gala::cpu::GALA_ISA

// gate: p -> z -> g -> alpha, beta, for a few images at a time; and its backward.
#pragma once

#include "blocks.h"
#include "gemm.h"

namespace gala::cpu::GALA_ISA {

// Packs w [rows, cols] (contiguous) or, transposed, w^T [cols, rows] into panels, the panels in parallel.
template <class A>
void pack_weight(const Problem& problem, const void* w, int64_t rows, int64_t cols, bool transposed, A* panels,
                 const void* row_scale = nullptr) {
  const int64_t out_rows = transposed ? cols : rows, out_cols = transposed ? rows : cols;
  parallel(problem, ceil_div(out_cols, kPanel), [&](int64_t i) {
    pack(as<A>(w), transposed ? 1 : cols, transposed ? cols : 1, out_rows, i * kPanel,
         smaller(out_cols, (i + 1) * kPanel), panels, out_rows, 0, as<A>(row_scale));
  });
}

// The products of the gate have few rows (one an image) and large weights, which are read once, where they lie.

// out[i, j] = sum over k of a[i, k] w[j, k] for kImages rows i of a and `rows` (1 or 2) rows j of w; the strides lie
// between rows.
template <int kImages, class A>
void dot_rows(const A* a, int64_t a_stride, const A* w, int64_t rows, int64_t depth, A* out, int64_t out_stride) {
  constexpr int64_t L = kLanes<A>;
  const A* second = rows > 1 ? w + depth : w;
  Vec<A> sums[kImages][2] = {};
  for (int64_t k = 0; k < depth; k += L) {
    const Vec<A> v0 = load(w + k, depth - k), v1 = load(second + k, depth - k);
#pragma GCC unroll 4
    for (int64_t i = 0; i < kImages; ++i) {
      const Vec<A> u = load(a + i * a_stride + k, depth - k);
      sums[i][0] += u * v0;
      sums[i][1] += u * v1;
    }
  }
  for (int64_t i = 0; i < kImages; ++i)
    for (int64_t j = 0; j < rows; ++j) out[i * out_stride + j] = sum_lanes<A>(sums[i][j]);
}

// out [images, cols] = a . w^T for a [images, depth] of row stride a_stride and w [cols, depth].
template <class A>
void multiply_by_rows(const Problem& problem, const A* a, int64_t a_stride, int64_t images, const void* w,
                      int64_t depth, int64_t cols, A* out) {
  constexpr int64_t kCols = 16;
  parallel(problem, ceil_div(cols, kCols), [&](int64_t task) {
    for (int64_t j = task * kCols; j < smaller(cols, (task + 1) * kCols); j += 2) {
      const A* from = as<A>(w) + j * depth;
      const int64_t rows = smaller(2, cols - j);
      int64_t i = 0;
      for (; i + 4 <= images; i += 4)
        dot_rows<4>(a + i * a_stride, a_stride, from, rows, depth, out + i * cols + j, cols);
      for (; i < images; ++i) dot_rows<1>(a + i * a_stride, a_stride, from, rows, depth, out + i * cols + j, cols);
    }
  });
}

// out[i, j] += sum over k < depth of a[i * row_step + k * depth_step] w[k * w_stride + j] for kRows rows i and j <
// cols.
template <int kRows, class A>
void add_rows(const A* a, int64_t row_step, int64_t depth_step, const A* w, int64_t w_stride, int64_t depth,
              int64_t cols, A* out, int64_t out_stride, bool add) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t j = 0; j < cols; j += L) {
    const int64_t count = cols - j;
    Vec<A> sums[kRows] = {};
    if (add)
      for (int64_t i = 0; i < kRows; ++i) sums[i] = load(out + i * out_stride + j, count);
    for (int64_t k = 0; k < depth; ++k) {
      const Vec<A> v = load(w + k * w_stride + j, count);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kRows; ++i) sums[i] += a[i * row_step + k * depth_step] * v;
    }
    for (int64_t i = 0; i < kRows; ++i) store(out + i * out_stride + j, sums[i], count);
  }
}

// out [rows, cols] = a . w for a(i, k) = a[i * row_step + k * depth_step] and w [depth, cols] of row stride w_stride.
// Some rows of w at a time are read along their whole width, split between threads by rows of a or by columns.
template <class A>
void combine_rows(const Problem& problem, const A* a, int64_t row_step, int64_t depth_step, int64_t rows, const A* w,
                  int64_t w_stride, int64_t depth, int64_t cols, A* out) {
  constexpr int64_t kRows = 32, kDepth = 16;
  const int64_t row_tasks = ceil_div(rows, kRows);
  const int64_t wanted = ceil_div(problem.parallel.threads, row_tasks);
  const int64_t width = ceil_div(ceil_div(cols, wanted), kPanel) * kPanel;
  parallel(problem, row_tasks * ceil_div(cols, width), [&](int64_t task) {
    const int64_t top = task % row_tasks * kRows, bottom = smaller(rows, top + kRows);
    const int64_t col = task / row_tasks * width, count = smaller(width, cols - col);
    for (int64_t k = 0; k < depth; k += kDepth) {
      const A* from = w + k * w_stride + col;
      const int64_t steps = smaller(kDepth, depth - k);
      int64_t i = top;
      for (; i + 4 <= bottom; i += 4)
        add_rows<4>(a + i * row_step + k * depth_step, row_step, depth_step, from, w_stride, steps, count,
                    out + i * cols + col, cols, k > 0);
      for (; i < bottom; ++i)
        add_rows<1>(a + i * row_step + k * depth_step, row_step, depth_step, from, w_stride, steps, count,
                    out + i * cols + col, cols, k > 0);
    }
  });
}

// alpha = a g and beta = a + m g of one image, [C] each; alpha may be where g is.
template <class A>
void open_gates(const Problem& problem, const A* g, A* alpha, A* beta) {
  for (int64_t c = 0; c < problem.shape.channels; ++c) {
    const A a = as<A>(problem.weights.a)[c];
    beta[c] = a + as<A>(problem.weights.m)[c] * g[c];
    alpha[c] = a * g[c];
  }
}

// g [count, C] of images [first, first + count), z in their statistics; leaves relu(z) in hidden [count, R].
template <class A>
void expand(const Problem& problem, const void* stats, int64_t first, int64_t count, A* hidden, A* g) {
  const Shape& s = problem.shape;
  const Weights& w = problem.weights;
  for (int64_t i = 0; i < count; ++i) {
    const A* z = Stats<A>(stats, s, first + i).z;
    for (int64_t r = 0; r < s.reduced; ++r) hidden[i * s.reduced + r] = z[r] <= 0 ? 0 : z[r];
  }
  multiply_by_rows(problem, hidden, s.reduced, count, w.w_expand, s.reduced, s.channels, g);
  for (int64_t i = 0, at = 0; w.b_w_expand && i < count; ++i)
    for (int64_t c = 0; c < s.channels; ++c, ++at) g[at] += as<A>(w.b_w_expand)[c];
}

// Of images [first, first + count), p in their statistics: z into the statistics, alpha and beta [count, C];
// hidden [count, R] is scratch.
template <class A>
void gate_forward(const Problem& problem, const void* stats, int64_t first, int64_t count, A* hidden, A* alpha,
                  A* beta) {
  const Shape& s = problem.shape;
  const Weights& w = problem.weights;
  multiply_by_rows(problem, Stats<A>(stats, s, first).p, Stats<A>::width(s), count, w.w_shrink, s.channels, s.reduced,
                   hidden);
  for (int64_t i = 0; i < count; ++i) {
    A* z = Stats<A>(stats, s, first + i).z;
    for (int64_t r = 0; r < s.reduced; ++r)
      z[r] = hidden[i * s.reduced + r] + (w.b_w_shrink ? as<A>(w.b_w_shrink)[r] : A(0));
  }
  expand(problem, stats, first, count, hidden, alpha);
  for (int64_t i = 0; i < count; ++i)
    open_gates<A>(problem, alpha + i * s.channels, alpha + i * s.channels, beta + i * s.channels);
}

// Of `count` images from `first` on: dg [count, C], dz [count, R] and dp [count, C] from d alpha and d beta [count, C].
template <class A>
void gate_backward(const Problem& problem, const void* stats, int64_t first, int64_t count, const A* d_alpha,
                   const A* d_beta, A* dg, A* dz, A* dp) {
  const Shape& s = problem.shape;
  const Weights& w = problem.weights;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0, at = i * s.channels; c < s.channels; ++c, ++at)
      dg[at] = as<A>(w.a)[c] * d_alpha[at] + as<A>(w.m)[c] * d_beta[at];
  combine_rows(problem, dg, s.channels, 1, count, as<A>(w.w_expand), s.reduced, s.channels, s.reduced, dz);
  for (int64_t i = 0; i < count; ++i) {
    const A* z = Stats<A>(stats, s, first + i).z;
    for (int64_t r = 0; r < s.reduced; ++r)
      if (z[r] <= 0) dz[i * s.reduced + r] = 0;
  }
  combine_rows(problem, dz, s.reduced, 1, count, as<A>(w.w_shrink), s.channels, s.reduced, s.channels, dp);
}

// The gradients of w_shrink, w_expand, a, m and their biases from all images' g, relu(z) [N, R], dg, dz, d alpha and
// d beta.
template <class A>
void gate_weight_grads(const Problem& problem, const void* stats, const A* g, const A* hidden, const A* d_alpha,
                       const A* d_beta, const A* dg, const A* dz, const WeightGrads& grads) {
  const Shape& s = problem.shape;
  combine_rows(problem, dg, 1, s.channels, s.channels, hidden, s.reduced, s.images, s.reduced,
               static_cast<A*>(grads.w_expand));
  combine_rows(problem, dz, 1, s.reduced, s.reduced, static_cast<const A*>(Stats<A>(stats, s, 0).p), Stats<A>::width(s),
               s.images, s.channels, static_cast<A*>(grads.w_shrink));

  A *da = static_cast<A*>(grads.a), *dm = static_cast<A*>(grads.m);
  for (int64_t c = 0; c < s.channels; ++c) da[c] = dm[c] = 0;
  for (int64_t i = 0; i < s.images; ++i) {
    for (int64_t c = 0, at = i * s.channels; c < s.channels; ++c, ++at) {
      da[c] += g[at] * d_alpha[at] + d_beta[at];
      dm[c] += g[at] * d_beta[at];
    }
  }
  if (grads.b_w_shrink) sum_matrix_rows(dz, s.images, s.reduced, grads.b_w_shrink);
  if (grads.b_w_expand) sum_matrix_rows(dg, s.images, s.channels, grads.b_w_expand);
}

}  // namespace gala::cpu::GALA_ISA

// gate: p -> z -> g -> alpha, beta, for a few images at a time; and its backward.
#pragma once

#include "gemm.h"
#include "stage.h"

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

// c [rows, cols] = a . b, both in panels; the columns in parallel.
template <class A>
void parallel_multiply(const Problem& problem, const A* a, int64_t rows, const A* b, int64_t depth, int64_t cols, A* c) {
  parallel(problem, ceil_div(cols, kPanel), [&](int64_t i) {
    multiply(a, rows, b, depth, i * kPanel, smaller(cols, (i + 1) * kPanel), c, cols, false);
  });
}

// c [rows, cols] = a^T . b for a [depth, rows], b [depth, cols] in panels; the rows in parallel.
template <class A>
void parallel_multiply_transposed(const Problem& problem, const A* a, int64_t rows, const A* b, int64_t depth,
                                  int64_t cols, void* c) {
  parallel(problem, ceil_div(rows, kPanel), [&](int64_t i) {
    multiply_transposed(a, i * kPanel, smaller(rows, (i + 1) * kPanel), b, depth, cols, static_cast<A*>(c), cols, false);
  });
}

// Adds bias to v where there is one.
template <class A>
inline A biased(A v, const void* bias, int64_t i) {
  return bias ? v + as<A>(bias)[i] : v;
}

// Room for the products of `images` images.
template <class A>
struct GateMemory {
  int64_t images, channels, reduced;
  A *wide, *narrow;  // left operands in panels, C and R columns
  A* product;
  void place(Arrays<A>& arrays) {
    wide = arrays.take(panels_size(images, channels));
    narrow = arrays.take(panels_size(images, reduced));
    product = arrays.take(images * larger(channels, reduced));
  }
};

// Of images [first, first + count), p in their statistics: z and g into the statistics, alpha and beta [count, C].
template <class A>
void gate_forward(const Problem& problem, const void* stats, int64_t first, int64_t count, const A* w_shrink,
                  const A* w_expand, const GateMemory<A>& memory, A* alpha, A* beta) {
  const Shape& s = problem.shape;
  const Weights& w = problem.weights;
  const Stats<A> top(stats, s, first), next(stats, s, first + 1);
  pack(top.p, next.p - top.p, 1, count, 0, s.channels, memory.wide, count, 0);
  parallel_multiply(problem, memory.wide, count, w_shrink, s.channels, s.reduced, memory.product);
  for (int64_t i = 0; i < count; ++i) {
    const Stats<A> to(stats, s, first + i);
    A* row = memory.product + i * s.reduced;
    for (int64_t r = 0; r < s.reduced; ++r) {
      to.z[r] = biased(row[r], w.b_w_shrink, r);
      row[r] = to.z[r] <= 0 ? 0 : to.z[r];
    }
  }
  pack(memory.product, s.reduced, 1, count, 0, s.reduced, memory.narrow, count, 0);
  parallel_multiply(problem, memory.narrow, count, w_expand, s.reduced, s.channels, memory.product);
  for (int64_t i = 0; i < count; ++i) {
    const Stats<A> to(stats, s, first + i);
    for (int64_t c = 0; c < s.channels; ++c) {
      const A g = biased(memory.product[i * s.channels + c], w.b_w_expand, c);
      to.g[c] = g;
      alpha[i * s.channels + c] = as<A>(w.a)[c] * g;
      beta[i * s.channels + c] = as<A>(w.a)[c] + as<A>(w.m)[c] * g;
    }
  }
}

// Of images [first, first + count): dg [count, C], dz [count, R] and dp [count, C] from d alpha and d beta [count, C].
template <class A>
void gate_backward(const Problem& problem, const void* stats, int64_t first, int64_t count, const A* w_shrink,
                   const A* w_expand, const GateMemory<A>& memory, const A* d_alpha, const A* d_beta, A* dg, A* dz,
                   A* dp) {
  const Shape& s = problem.shape;
  const Weights& w = problem.weights;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t c = 0, at = i * s.channels; c < s.channels; ++c, ++at)
      dg[at] = as<A>(w.a)[c] * d_alpha[at] + as<A>(w.m)[c] * d_beta[at];
  pack(dg, s.channels, 1, count, 0, s.channels, memory.wide, count, 0);
  parallel_multiply(problem, memory.wide, count, w_expand, s.channels, s.reduced, dz);
  for (int64_t i = 0; i < count; ++i) {
    const Stats<A> from(stats, s, first + i);
    for (int64_t r = 0; r < s.reduced; ++r)
      if (from.z[r] <= 0) dz[i * s.reduced + r] = 0;
  }
  pack(dz, s.reduced, 1, count, 0, s.reduced, memory.narrow, count, 0);
  parallel_multiply(problem, memory.narrow, count, w_shrink, s.reduced, s.channels, dp);
}

// sums[cols] = the sum of the rows of matrix [rows, cols].
template <class A>
void sum_matrix_rows(const A* matrix, int64_t rows, int64_t cols, void* sums) {
  A* to = static_cast<A*>(sums);
  for (int64_t c = 0; c < cols; ++c) to[c] = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < cols; ++c) to[c] += matrix[i * cols + c];
}

// The gradients of w_shrink, w_expand, a, m and their biases from all images' dg, dz, d alpha and d beta.
template <class A>
void gate_weight_grads(const Problem& problem, const void* stats, const GateMemory<A>& memory, const A* d_alpha,
                       const A* d_beta, const A* dg, const A* dz, const WeightGrads& grads) {
  const Shape& s = problem.shape;
  const Stats<A> top(stats, s, 0), next(stats, s, 1);
  for (int64_t i = 0; i < s.images; ++i)
    for (int64_t r = 0; r < s.reduced; ++r) {
      const A z = Stats<A>(stats, s, i).z[r];
      memory.product[i * s.reduced + r] = z <= 0 ? 0 : z;
    }
  pack(dg, s.channels, 1, s.images, 0, s.channels, memory.wide, s.images, 0);
  pack(memory.product, s.reduced, 1, s.images, 0, s.reduced, memory.narrow, s.images, 0);
  parallel_multiply_transposed(problem, memory.wide, s.channels, memory.narrow, s.images, s.reduced, grads.w_expand);
  pack(dz, s.reduced, 1, s.images, 0, s.reduced, memory.narrow, s.images, 0);
  pack(top.p, next.p - top.p, 1, s.images, 0, s.channels, memory.wide, s.images, 0);
  parallel_multiply_transposed(problem, memory.narrow, s.reduced, memory.wide, s.images, s.channels, grads.w_shrink);

  A *da = static_cast<A*>(grads.a), *dm = static_cast<A*>(grads.m);
  for (int64_t c = 0; c < s.channels; ++c) da[c] = dm[c] = 0;
  for (int64_t i = 0; i < s.images; ++i) {
    const A* g = Stats<A>(stats, s, i).g;
    for (int64_t c = 0, at = i * s.channels; c < s.channels; ++c, ++at) {
      da[c] += g[c] * d_alpha[at] + d_beta[at];
      dm[c] += g[c] * d_beta[at];
    }
  }
  if (grads.b_w_shrink) sum_matrix_rows(dz, s.images, s.reduced, grads.b_w_shrink);
  if (grads.b_w_expand) sum_matrix_rows(dg, s.images, s.channels, grads.b_w_expand);
}

}  // namespace gala::cpu::GALA_ISA

// Matrix products over one packed format, "panels": a matrix [rows, cols] as ceil(cols / 64) slabs of [rows, 64],
// the last one padded with zeros. It serves as the left operand, the transposed left operand and the right operand.
#pragma once

#include "simd.h"

namespace gala::cpu::GALA_ISA {

constexpr int64_t kPanel = 64;

constexpr int64_t panels_size(int64_t rows, int64_t cols) { return ceil_div(cols, kPanel) * rows * kPanel; }

// Packs the block src[row * row_stride + col * col_stride], one of the strides being 1 (col_stride where there is only
// one column or row to step over), into columns
// [first_col, end_col) of panels of `panel_rows` rows, from row `first_row` on; first_col is a multiple of 64.
// Rows are multiplied by row_scale where it is given.
template <class T, class A = Acc<T>>
void pack(const T* src, int64_t row_stride, int64_t col_stride, int64_t rows, int64_t first_col, int64_t end_col,
          A* panels, int64_t panel_rows, int64_t first_row, const A* row_scale = nullptr) {
  constexpr int64_t L = kLanes<A>;
  if (col_stride == 1) {  // row by row, as they lie in memory
    for (int64_t row = 0; row < rows; ++row) {
      const Vec<A> scale = splat<A>(row_scale ? row_scale[row] : A(1));
      for (int64_t col = first_col; col < end_col; col += kPanel) {
        A* to = panels + col * panel_rows + (first_row + row) * kPanel;
        const T* from = src + row * row_stride + col;
        const int64_t cols = end_col - col;
        if (cols >= kPanel) {
#pragma GCC unroll 16
          for (int64_t i = 0; i < kPanel; i += L) store(to + i, load(from + i) * scale);
        } else {
          for (int64_t i = 0; i < kPanel; i += L) store(to + i, i < cols ? load(from + i, cols - i) * scale : Vec<A>{});
        }
      }
    }
    return;
  }
  for (int64_t col = first_col; col < end_col; col += kPanel)
    for (int64_t i = 0; i < kPanel; i += L)
      for (int64_t row = 0; row < rows; row += L) {
        const T* from = src + col * col_stride + row;
        const int64_t count = smaller(L, rows - row);
        Vec<A> block[L];
        for (int64_t j = 0; j < L; ++j) {
          __builtin_prefetch(from + (i + j) * col_stride + 4 * L);
          block[j] = col + i + j < end_col ? load(from + (i + j) * col_stride, count) : Vec<A>{};
        }
        transpose<A>(block);
        A* to = panels + col * panel_rows + (first_row + row) * kPanel + i;
        for (int64_t j = 0; j < count; ++j) store(to + j * kPanel, block[j] * (row_scale ? row_scale[row + j] : A(1)));
      }
}

constexpr int64_t kCacheLine = 64;

// Columns of a register tile, and its rows: the largest that leaves registers for one row of the right operand.
template <class A>
constexpr int kTileCols = 2 * kLanes<A>;
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif

// c[M, tile columns] (+)= a . b over `depth`, where a(i, k) = a[i * 64 + k] with a new panel every 64 k, or,
// transposed, a[k * 64 + i]. On the way it fetches the cache lines from `ahead` on, one for each k, where that is
// given.
template <class A, int M, bool transposed, bool fetch = false>
void tile(const A* a, int64_t a_panel, const A* b, int64_t depth, A* c, int64_t ldc, int64_t cols, bool add,
          const char* ahead = nullptr) {
  constexpr int64_t L = kLanes<A>;
  constexpr int64_t row_step = transposed ? 1 : kPanel, depth_step = transposed ? kPanel : 1;
  Vec<A> acc[M][2] = {};
  for (int64_t begin = 0; begin < depth; begin += kPanel, a += a_panel) {
    const int64_t steps = smaller(kPanel, depth - begin);
    for (int64_t k = 0; k < steps; ++k, b += kPanel) {
      const Vec<A> b0 = load(b), b1 = load(b + L);
      if constexpr (fetch) __builtin_prefetch(ahead + (begin + k) * kCacheLine);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const A scalar = a[i * row_step + k * depth_step];
        acc[i][0] += scalar * b0;
        acc[i][1] += scalar * b1;
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const int64_t left = cols - j * L;
      A* to = c + i * ldc + j * L;
      if (left > 0) store(to, add ? load(to, left) + acc[i][j] : acc[i][j], left);
    }
}

constexpr int fewer_rows(int rows) { return rows > 8 ? 8 : rows > 4 ? 4 : rows / 2; }

template <class A, int M, bool transposed>
void tile_column(const A* a, int64_t a_panel, int64_t rows, const A* b, int64_t depth, A* c, int64_t ldc, int64_t cols,
                 bool add) {
  constexpr int64_t row_step = transposed ? 1 : kPanel;
  for (; rows >= M; rows -= M, a += M * row_step, c += M * ldc)
    tile<A, M, transposed>(a, a_panel, b, depth, c, ldc, cols, add);
  if constexpr (M > 1)
    if (rows > 0) tile_column<A, fewer_rows(M), transposed>(a, a_panel, rows, b, depth, c, ldc, cols, add);
}

// c[rows, cols) = a . b (+ c): a [a_rows, depth] and b [depth, cols] in panels, c row-major. Computes the rows
// [0, a_rows) and the columns [first_col, end_col), first_col a multiple of the tile's columns.
template <class A>
void multiply(const A* a, int64_t a_rows, const A* b, int64_t depth, int64_t first_col, int64_t end_col, A* c,
              int64_t ldc, bool add) {
  for (int64_t col = first_col; col < end_col; col += kTileCols<A>)
    tile_column<A, kTileRows, false>(a, a_rows * kPanel, a_rows, b + col / kPanel * kPanel * depth + col % kPanel,
                                     depth, c + col, ldc, end_col - col, add);
}

// c[first_row .. end_row, cols) = a^T . b (+ c): a [depth, rows] and b [depth, cols] in panels, c row-major.
// first_row is a multiple of 64.
template <class A>
void multiply_transposed(const A* a, int64_t first_row, int64_t end_row, const A* b, int64_t depth, int64_t cols, A* c,
                         int64_t ldc, bool add) {
  for (int64_t col = 0; col < cols; col += kTileCols<A>)
    for (int64_t row = first_row; row < end_row; row += kPanel)
      tile_column<A, kTileRows, true>(a + row * depth, kPanel * kPanel, smaller(kPanel, end_row - row),
                                      b + col / kPanel * kPanel * depth + col % kPanel, depth, c + row * ldc + col, ldc,
                                      cols - col, add);
}

}  // namespace gala::cpu::GALA_ISA

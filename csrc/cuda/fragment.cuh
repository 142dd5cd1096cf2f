// Fragments, which are the operands of the tensor cores, loaded from tiles in shared memory, and their products.
//
// An instruction multiplies [16, depth] by [depth, 8], where depth is 32 bytes: two vectors of 16 bytes. A straight
// fragment comes from a tile whose lines run along the depth, a crossed one from a tile with one line for each step of
// the depth.
#pragma once

#include <cmath>
#include <primitives.cuh>
#include <type_traits>

#include "tile.cuh"

namespace gala::cuda {

// n registers. A float32 number takes two: the nearest TF32 number, and the difference to it.
template <class T, int n>
struct Fragment {
  uint32_t high[n];
};
template <int n>
struct Fragment<float, n> {
  uint32_t high[n], low[n];
};
struct Exact {};  // in place of float, for numbers that TF32 holds exactly

template <class T, int n>
GALA_DEVICE Fragment<T, n> fragment(const uint32_t (&registers)[n]) {
  Fragment<T, n> f;
  GALA_UNROLL
  for (int i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      const float value = float_of(registers[i]);
      f.high[i] = round_tf32(value);
      f.low[i] = bits_of(value - float_of(f.high[i]));
    } else {
      f.high[i] = registers[i];
    }
  }
  return f;
}

// Sets a lane's parts in a row of the product to zero where one of them is infinite or NaN: an infinite operand times
// the low part of the other one has any sign, so the product of the TF32 numbers alone must decide the result.
template <int m, int n>
GALA_DEVICE void drop_infinite(float (&parts)[m * n][4]) {
  GALA_UNROLL
  for (int i = 0; i < 2 * m; ++i) {
    const int first = i / 2 * n, left = i % 2 * 2;
    float sum = 0.0f;
    GALA_UNROLL
    for (int j = first; j < first + n; ++j) sum += parts[j][left] + parts[j][left + 1];
    const bool finite = std::fabs(sum) < HUGE_VALF;
    GALA_UNROLL
    for (int j = first; j < first + n; ++j) {
      if (!finite) parts[j][left] = parts[j][left + 1] = 0.0f;
    }
  }
}

// Adds the products of m left operands and n right ones to the sums from [row][col] on. A product of float32 numbers is
// that of their TF32 numbers; with `tf32x3` it is the sum of three products of their parts, all but that of the low
// ones. These are summed by themselves first, since the tensor cores truncate the number that they add to.
template <class T, int m, int n, class A, class B, int rows, int cols>
GALA_DEVICE void multiply(float (&sums)[rows][cols][4], int row, int col, const Fragment<A, 4>* a,
                          const Fragment<B, 2>* b, bool tf32x3) {
  if constexpr (!std::is_same_v<T, float>) {
    GALA_UNROLL
    for (int i = 0; i < m * n; ++i) mma(sums[row + i / n][col + i % n], a[i / n].high, b[i % n].high, T{});
  } else if (!tf32x3) {
    GALA_UNROLL
    for (int i = 0; i < m * n; ++i) mma_tf32(sums[row + i / n][col + i % n], a[i / n].high, b[i % n].high);
  } else {
    float parts[m * n][4] = {};
    GALA_UNROLL
    for (int i = 0; i < m * n; ++i) {
      if constexpr (std::is_same_v<A, float>) mma_tf32(parts[i], a[i / n].low, b[i % n].high);
    }
    GALA_UNROLL
    for (int i = 0; i < m * n; ++i) {
      if constexpr (std::is_same_v<B, float>) mma_tf32(parts[i], a[i / n].high, b[i % n].low);
    }
    if constexpr (std::is_same_v<A, float> && std::is_same_v<B, float>) drop_infinite<m, n>(parts);
    GALA_UNROLL
    for (int i = 0; i < m * n; ++i) mma_tf32(parts[i], a[i / n].high, b[i % n].high);
    GALA_UNROLL
    for (int i = 0; i < 4 * m * n; ++i) sums[row + i / 4 / n][col + i / 4 % n][i % 4] += parts[i / 4][i % 4];
  }
}

// The address for lane i: of line `line` + i % 8, `line` being a multiple of 8, and vector `vector` + `odd`, `vector`
// being even.
template <int line_bytes>
GALA_DEVICE const char* lane_row(const char* tile, int line, int vector, int odd) {
  const int low = lane() % 8, key = (odd ^ swizzle(low)) * kVectorBytes;
  return tile + (line + low) * line_bytes + (vector * kVectorBytes ^ key);
}

// One element of a crossed tile of float32: element `element` + lane / 4 of line `line` + lane % 4, or with `further`
// of the line 4 after that.
template <int line_bytes>
GALA_DEVICE uint32_t crossed_word(const char* tile, int line, int element, bool further) {
  const int low = lane() % 4 + (further ? 4 : 0), byte = (element + lane() / 4) * 4;
  const char* at = tile + (line + low) * line_bytes + (byte ^ swizzle(low) * kVectorBytes);
  return load_shared(reinterpret_cast<const uint32_t*>(at));
}

// The left operand [16, depth] of instruction `k` of a step, from row `row` on.
template <class T, bool straight, int line_bytes>
GALA_DEVICE Fragment<T, 4> left_operand(const char* tile, int row, int k) {
  uint32_t r[4];
  const int half = lane() / 8 % 2, quarter = lane() / 16;
  if constexpr (straight) {
    load_matrix_x4(r, lane_row<line_bytes>(tile, row + half * 8, k * 2, quarter));
  } else if constexpr (!std::is_same_v<T, float>) {
    load_matrix_x4_transposed(r, lane_row<line_bytes>(tile, k * 16 + quarter * 8, row / 8, half));
  } else {
    GALA_UNROLL
    for (int i = 0; i < 4; ++i) r[i] = crossed_word<line_bytes>(tile, k * 8, row + i % 2 * 8, i >= 2);
  }
  return fragment<T>(r);
}

// The right operands [depth, 8] of instruction `k` of a step, of columns `col` and `col` + 8 on.
template <class T, bool straight, int line_bytes>
GALA_DEVICE void right_operands(Fragment<T, 2> (&to)[2], const char* tile, int col, int k) {
  uint32_t r[4];
  const int half = lane() / 8 % 2, quarter = lane() / 16;
  if constexpr (straight) {
    load_matrix_x4(r, lane_row<line_bytes>(tile, col + quarter * 8, k * 2, half));
  } else if constexpr (!std::is_same_v<T, float>) {
    load_matrix_x4_transposed(r, lane_row<line_bytes>(tile, k * 16 + half * 8, col / 8, quarter));
  } else {
    GALA_UNROLL
    for (int i = 0; i < 4; ++i) r[i] = crossed_word<line_bytes>(tile, k * 8, col + i / 2 * 8, i % 2 == 1);
  }
  GALA_UNROLL
  for (int i = 0; i < 2; ++i) to[i] = fragment<T>({r[2 * i], r[2 * i + 1]});
}

}  // namespace gala::cuda

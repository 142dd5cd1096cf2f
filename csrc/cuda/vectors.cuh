// Vectors of neighbouring elements, as float32 in registers.
#pragma once

#include <primitives.cuh>
#include <type_traits>

namespace gala::cuda {

template <class T, int n>
GALA_DEVICE void widen(const Vec<T, n>& from, float (&to)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) to[i] = to_float(from.at[i]);
}

template <class T, int n>
GALA_DEVICE Vec<T, n> narrow(const float (&from)[n]) {
  Vec<T, n> to;
  if constexpr (std::is_same_v<T, float> || n == 1) {
#pragma unroll
    for (int i = 0; i < n; ++i) to.at[i] = from_float<T>(from[i]);
  } else {
#pragma unroll
    for (int i = 0; i < n; i += 2) {
      const uint32_t pair = pack_pair<T>(from[i], from[i + 1]);
      to.at[i].bits = static_cast<uint16_t>(pair);
      to.at[i + 1].bits = static_cast<uint16_t>(pair >> 16);
    }
  }
  return to;
}

// max(value, 0) that keeps a NaN, as torch.relu.
GALA_DEVICE float relu(float value) { return value <= 0.0f ? 0.0f : value; }

// Each of the warp's lanes gives n values, n a power of two; returns the sum over the lanes of value lane * n / 32.
template <int n>
GALA_DEVICE float sum_over_lanes(float (&values)[n]) {
  int mask = 16;
#pragma unroll
  for (int half = n / 2; half > 0; half /= 2) {
    const bool upper = (lane() & mask) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float other = upper ? values[i] : values[i + half];
      values[i] = (upper ? values[i + half] : values[i]) + shuffle_xor(other, mask);
    }
    mask /= 2;
  }
#pragma unroll
  for (int left = 32 / n; left > 1; left /= 2) {
    values[0] += shuffle_xor(values[0], mask);
    mask /= 2;
  }
  return values[0];
}

}  // namespace gala::cuda

// Vectors of neighbouring elements, as float32 in registers.
#pragma once

#include <primitives.cuh>
#include <type_traits>

namespace gala::cuda {

template <class T, int n>
GALA_DEVICE void widen(const Vec<T, n>& from, float (&to)[n]) {
  GALA_UNROLL
  for (int i = 0; i < n; ++i) to[i] = to_float(from.at[i]);
}

template <class T, int n>
GALA_DEVICE Vec<T, n> narrow(const float (&from)[n]) {
  Vec<T, n> to;
  if constexpr (std::is_same_v<T, float> || n == 1) {
    GALA_UNROLL
    for (int i = 0; i < n; ++i) to.at[i] = from_float<T>(from[i]);
  } else {
    GALA_UNROLL
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
template <int n, int mask = 16>
GALA_DEVICE float sum_over_lanes(const float (&values)[n]) {
  if constexpr (n > 1) {
    const bool upper = (lane() & mask) != 0;
    float half[n / 2];
    GALA_UNROLL
    for (int i = 0; i < n / 2; ++i) {
      const float other = upper ? values[i] : values[i + n / 2];
      half[i] = (upper ? values[i + n / 2] : values[i]) + shuffle_xor(other, mask);
    }
    return sum_over_lanes<n / 2, mask / 2>(half);
  } else {
    float sum = values[0];
    GALA_UNROLL
    for (int left = mask; left > 0; left /= 2) sum += shuffle_xor(sum, left);
    return sum;
  }
}

}  // namespace gala::cuda

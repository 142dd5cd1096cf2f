// Vectors of neighbouring elements: packed as in memory, unpacked as float32 in registers, and their sums.
#pragma once

#include <primitives.cuh>
#include <type_traits>

namespace gala::cuda {

// n elements of type T as they lie in memory. They stay in whole registers until unpack: taking 16-bit numbers apart
// earlier would mean to wait for the load.
template <class T, int n>
using Packed = std::conditional_t<sizeof(T) * n == 2, Vec<uint16_t, 1>, Vec<uint32_t, sizeof(T) * n / 4>>;

template <class T, int n>
GALA_DEVICE void unpack(const Packed<T, n>& from, float (&to)[n]) {
  GALA_UNROLL
  for (int i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<T, float>) to[i] = float_of(from.at[i]);
    else to[i] = to_float(T{static_cast<uint16_t>(from.at[i / 2] >> 16 * (i % 2))});
  }
}

template <class T, int n>
GALA_DEVICE Packed<T, n> pack(const float (&from)[n]) {
  Packed<T, n> to;
  if constexpr (std::is_same_v<T, float>) {
    GALA_UNROLL
    for (int i = 0; i < n; ++i) to.at[i] = bits_of(from[i]);
  } else if constexpr (n == 1) {
    to.at[0] = from_float<T>(from[0]).bits;
  } else {
    GALA_UNROLL
    for (int i = 0; i < n / 2; ++i) to.at[i] = pack_pair<T>(from[2 * i], from[2 * i + 1]);
  }
  return to;
}

// The place in [width, group_size] of value i of the thread that is number `beside` in its group, whose size is a power
// of two. In a group of 32, threads use different banks when each writes its value i, and when each reads one of
// neighbouring values.
template <int width>
GALA_DEVICE int crossed_place(int i, int beside, int group_size) {
  return i * group_size + ((beside ^ i * (32 / width)) & (group_size - 1));
}

GALA_DEVICE int lesser(int a, int b) { return a < b ? a : b; }

// max(value, 0) that keeps a NaN, as torch.relu.
GALA_DEVICE float relu(float value) { return value <= 0.0f ? 0.0f : value; }

// Sums n values over the lanes of a warp, n being a power of two; returns the sum of value number lane * n / 32.
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

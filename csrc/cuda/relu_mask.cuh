// Operands of products that are made in registers from the ReLU mask, which has one bit for each hidden unit.
#pragma once

#include <primitives.cuh>
#include <type_traits>

#include "fragment.cuh"

namespace gala::cuda {

template <class T>
constexpr uint32_t kOnes = 0;  // a register of ones, of which a mask keeps some
template <>
constexpr uint32_t kOnes<bf16> = 0x3f803f80;
template <>
constexpr uint32_t kOnes<f16> = 0x3c003c00;
template <>
constexpr uint32_t kOnes<float> = 0x3f800000;

// A pixel's mask as the numbers 0 and 1, in the two registers that instruction `k` of a step takes: the lane's first
// hidden units, and those 16 bytes further. words [words of a step, pixels] are in shared memory.
template <class T, int pixels>
GALA_DEVICE void mask_as_numbers(const uint32_t* words, int pixel, int k, uint32_t& first, uint32_t& further) {
  constexpr bool kPairs = sizeof(T) == 2;
  const uint32_t word = load_shared(words + (kPairs ? k / 2 * pixels : 0) + pixel);
  const int in_group = lane() % 4;
  if constexpr (kPairs) {  // hidden units 2 in_group and the next of a byte
    const uint32_t even = word << (7 - 2 * in_group), odd = word << (6 - 2 * in_group);
    first = byte_signs(even, odd, k % 2 * 2) & kOnes<T>;
    further = byte_signs(even, odd, k % 2 * 2 + 1) & kOnes<T>;
  } else {
    const uint32_t low = word << (7 - in_group), high = word << (3 - in_group);
    first = byte_signs(low, low, k) & kOnes<T>;
    further = byte_signs(high, high, k) & kOnes<T>;
  }
}

// ds where the hidden unit was on, else 0: the left operands of instruction `k` of a step, for 32 hidden units. Their
// words of the mask, of which pixel i's is at i ^ `key`, and ds are both [kDepth] in shared memory.
template <class T>
GALA_DEVICE void ds_where_on(Fragment<T, 4>* left, const uint32_t* words, int key, const float* ds, int k) {
  const int shift = 7 - lane() / 4;  // moves the bits of the lane's hidden units to the sign bits of the word's bytes
  if constexpr (std::is_same_v<T, float>) {
    const int pixel = k * 8 + lane() % 4;
    const auto d = fragment<float>({bits_of(load_shared(ds + pixel)), bits_of(load_shared(ds + pixel + 4))});
    GALA_UNROLL
    for (int i = 0; i < 8; ++i) {
      const int further = i / 2 % 2;
      const uint32_t word = load_shared(words + ((pixel + 4 * further) ^ key)) << shift;
      const uint32_t mask = byte_signs(word, word, i / 4 * 2 + i % 2);
      left[i / 4].high[i % 4] = d.high[further] & mask;
      left[i / 4].low[i % 4] = d.low[further] & mask;
    }
  } else {
    GALA_UNROLL
    for (int further = 0; further < 2; ++further) {
      const int pixel = k * 16 + further * 8 + lane() % 4 * 2;
      const auto word = load_shared(reinterpret_cast<const Vec<uint32_t, 2>*>(words + (pixel ^ key)));
      const auto d = load_shared(reinterpret_cast<const Vec<float, 2>*>(ds + pixel));
      const uint32_t pair = pack_pair<T>(d.at[0], d.at[1]);
      GALA_UNROLL
      for (int i = 0; i < 4; ++i)
        left[i / 2].high[2 * further + i % 2] = pair & byte_signs(word.at[0] << shift, word.at[1] << shift, i);
    }
  }
}

}  // namespace gala::cuda

// The squashes, tanh and sigmoid, as accurately as a result of type T can show, and their derivatives.
#pragma once

#include <cmath>
#include <primitives.cuh>
#include <type_traits>

namespace gala::cuda {

// tanh within a relative error of 1e-6: (1 - t) / (1 + t) with t = exp(-2 |x|), near 0 a series.
GALA_DEVICE float tanh_fast(float x) {
  const float size = std::fabs(x), square = x * x;
  const float t = exp2_approx(size * -2.885390082f);
  const float far = (1.0f - t) * reciprocal_approx(1.0f + t);
  const float near = x + x * square * (square * 0.13333333f - 0.33333333f);
  return size < 0.1f ? near : std::copysign(far, x);
}

// bf16 takes the hardware's tanh, which is within 2^-11 of the true value.
template <class T>
GALA_DEVICE float squash(float total, bool tanh) {
  if constexpr (std::is_same_v<T, float>) {
    return tanh ? std::tanh(total) : 1.0f / (1.0f + std::exp(-total));
  } else {
    if (!tanh) return reciprocal_approx(1.0f + exp2_approx(total * -1.442695041f));
    return std::is_same_v<T, bf16> ? tanh_approx(total) : tanh_fast(total);
  }
}

// Of the squash, from its value.
GALA_DEVICE float derivative(float attention, bool tanh) {
  return tanh ? 1.0f - attention * attention : attention * (1.0f - attention);
}

// Of n totals in place, with one branch for all; and its derivative there.
template <class T, int n>
GALA_DEVICE void squash_all(float (&totals)[n], bool tanh) {
  if (tanh) {
    GALA_UNROLL
    for (int i = 0; i < n; ++i) totals[i] = squash<T>(totals[i], true);
  } else {
    GALA_UNROLL
    for (int i = 0; i < n; ++i) totals[i] = squash<T>(totals[i], false);
  }
}
template <class T, int n>
GALA_DEVICE void squash_all(float (&totals)[n], bool tanh, float (&slopes)[n]) {
  if (tanh) {
    GALA_UNROLL
    for (int i = 0; i < n; ++i) slopes[i] = derivative(totals[i] = squash<T>(totals[i], true), true);
  } else {
    GALA_UNROLL
    for (int i = 0; i < n; ++i) slopes[i] = derivative(totals[i] = squash<T>(totals[i], false), false);
  }
}

}  // namespace gala::cuda

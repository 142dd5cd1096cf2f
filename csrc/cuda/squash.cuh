// The squashes, tanh and sigmoid, as accurately as a result of type T can show, and their derivatives.
#pragma once

#include <cmath>
#include <primitives.cuh>
#include <type_traits>

#include "../gala.h"

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
template <class T, Squash kind>
GALA_DEVICE float squash(float total) {
  if constexpr (kind == Squash::tanh) {
    if constexpr (std::is_same_v<T, float>) return std::tanh(total);
    else return std::is_same_v<T, bf16> ? tanh_approx(total) : tanh_fast(total);
  } else {
    static_assert(kind == Squash::sigmoid, "a squash without its function");
    if constexpr (std::is_same_v<T, float>) return 1.0f / (1.0f + std::exp(-total));
    else return reciprocal_approx(1.0f + exp2_approx(total * -1.442695041f));
  }
}

// The derivative, from the value of the squash.
template <Squash kind>
GALA_DEVICE float derivative(float attention) {
  if constexpr (kind == Squash::tanh) {
    return 1.0f - attention * attention;
  } else {
    static_assert(kind == Squash::sigmoid, "a squash without its derivative");
    return attention * (1.0f - attention);
  }
}

// Calls body<kind>(): one branch for all that the body computes.
template <class Body>
GALA_DEVICE void with_squash(Squash kind, const Body& body) {
  switch (kind) {
    case Squash::tanh: return body.template operator()<Squash::tanh>();
    case Squash::sigmoid: return body.template operator()<Squash::sigmoid>();
  }
  __builtin_unreachable();
}

template <class T>
GALA_DEVICE float squash(float total, Squash kind) {
  float attention;
  with_squash(kind, [&]<Squash known>() { attention = squash<T, known>(total); });
  return attention;
}

// Squashes n totals in place; the second form computes the derivatives there too.
template <class T, int n>
GALA_DEVICE void squash_all(float (&totals)[n], Squash kind) {
  with_squash(kind, [&]<Squash known>() {
    GALA_UNROLL
    for (int i = 0; i < n; ++i) totals[i] = squash<T, known>(totals[i]);
  });
}
template <class T, int n>
GALA_DEVICE void squash_all(float (&totals)[n], Squash kind, float (&slopes)[n]) {
  with_squash(kind, [&]<Squash known>() {
    GALA_UNROLL
    for (int i = 0; i < n; ++i) slopes[i] = derivative<known>(totals[i] = squash<T, known>(totals[i]));
  });
}

}  // namespace gala::cuda

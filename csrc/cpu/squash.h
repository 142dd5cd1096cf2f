// tanh and sigmoid of whole vectors, within a few units in the last place, and their derivatives.
#pragma once

#include "../gala.h"
#include "simd.h"

namespace gala::cpu::GALA_ISA {

template <class A>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  using Int = int32_t;
  static constexpr float round = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr int mantissa = 23, bias = 127;
  // (exp(r) - 1 - r) / r^2, the highest power first: least largest relative error of exp(r) - 1, 1.3e-8
  static constexpr float series[] = {0x1.6bebfep-10f, 0x1.1227bp-7f, 0x1.555674p-5f, 0x1.5554bp-3f, 0x1.fffffep-2f};
  static constexpr float tanh_end = 10.0f;  // tanh is 1 from here on
  static constexpr float low = -87.0f, high = 89.0f;  // exp is 0 below and infinite above, as far as sigmoid can see
};

template <>
struct ExpConstants<double> {
  using Int = int64_t;
  static constexpr double round = 0x1.8p52;
  static constexpr double ln2_high = 0x1.62e42fefa3p-1, ln2_low = 0x1.3de6af278ece6p-42;
  static constexpr int mantissa = 52, bias = 1023;
  // the same, by Taylor: 1 / 13! to 1 / 2!
  static constexpr double series[] = {1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0,
                                      1 / 362880.0,     1 / 40320.0,     1 / 5040.0,     1 / 720.0,
                                      1 / 120.0,        1 / 24.0,        1 / 6.0,        1 / 2.0};
  static constexpr double tanh_end = 20.0;
  static constexpr double low = -708.0, high = 710.0;
};

// y = n ln 2 + r with |r| <= ln 2 / 2: 2^(n - less) and exp(r) - 1.
template <class A, int less>
struct Exp {
  Vec<A> scale, expm1_r;

  explicit Exp(Vec<A> y) {
    using K = ExpConstants<A>;
    typedef typename K::Int Ints __attribute__((vector_size(kVectorBytes)));
    const Vec<A> shifted = y * A(1.44269504088896340736) + K::round;
    const Vec<A> n = shifted - K::round;
    const Vec<A> r = (y - n * K::ln2_high) - n * K::ln2_low;
    // the shift drops all bits of `round`, and those of n that have no place in an exponent
    scale = bit_cast<Vec<A>>((bit_cast<Ints>(shifted) + (K::bias - less)) << K::mantissa);
    Vec<A> series = splat<A>(K::series[0]);
#pragma GCC unroll 16
    for (unsigned i = 1; i < sizeof(K::series) / sizeof(A); ++i) series = series * r + K::series[i];
    expm1_r = (r * r) * series + r;
  }
};

// tanh |x| = e / (e + 2) with e = exp(2 |x|) - 1, which loses nothing near 0.
template <class A>
inline Vec<A> tanh(Vec<A> x) {
  typedef typename ExpConstants<A>::Int Ints __attribute__((vector_size(kVectorBytes)));
  const Ints sign = bit_cast<Ints>(x) & bit_cast<Ints>(splat<A>(A(-0.0)));
  Vec<A> magnitude = bit_cast<Vec<A>>(bit_cast<Ints>(x) ^ sign);
  magnitude = ExpConstants<A>::tanh_end < magnitude ? splat<A>(ExpConstants<A>::tanh_end) : magnitude;
  const Exp<A, 0> exp(magnitude + magnitude);
  const Vec<A> e = exp.scale * exp.expm1_r + (exp.scale - 1);
  return bit_cast<Vec<A>>(bit_cast<Ints>(e / (e + 2)) | sign);
}

template <class A>
inline Vec<A> sigmoid(Vec<A> x) {
  using K = ExpConstants<A>;
  Vec<A> y = -x;
  y = y < K::low ? splat<A>(K::low) : y;
  y = y > K::high ? splat<A>(K::high) : y;
  const Exp<A, 1> exp(y);  // exp(y) / 2 stays finite
  const Vec<A> e = (exp.scale * exp.expm1_r + exp.scale) * 2;
  return 1 / (1 + e);
}

template <Squash squash, class A>
inline Vec<A> apply(Vec<A> total) {
  if constexpr (squash == Squash::tanh) return tanh<A>(total);
  else {
    static_assert(squash == Squash::sigmoid, "a squash without its function");
    return sigmoid<A>(total);
  }
}

// The derivative, from the attention itself.
template <Squash squash, class A>
inline Vec<A> derivative(Vec<A> attention) {
  if constexpr (squash == Squash::tanh) return 1 - attention * attention;
  else {
    static_assert(squash == Squash::sigmoid, "a squash without its derivative");
    return attention * (1 - attention);
  }
}

}  // namespace gala::cpu::GALA_ISA

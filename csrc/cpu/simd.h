// Vectors as GCC and Clang know them, as wide as the instruction set this file is compiled for, and the loads and
// stores that turn every storage type into the accumulation type.
//
// Everything here lives in a namespace named after the instruction set and calls nothing of the standard library that
// is not a macro or a builtin: an inline function shared between instruction sets could be linked in its widest form.
#pragma once

#include <cstdint>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gala::cpu::GALA_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class A>
struct Simd {
  typedef A Vec __attribute__((vector_size(kVectorBytes)));
  typedef A Loose __attribute__((vector_size(kVectorBytes), aligned(sizeof(A)), may_alias));
  static constexpr int lanes = kVectorBytes / sizeof(A);
};
template <class A>
using Vec = typename Simd<A>::Vec;
template <class A>
constexpr int kLanes = Simd<A>::lanes;

template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using Acc = typename Accumulate<T>::type;

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class A>
inline Vec<A> splat(A value) {
  return value - Vec<A>{};
}

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

typedef uint16_t Vec16 __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t Vec32 __attribute__((vector_size(kVectorBytes)));

inline Vec<float> widen(bf16, Vec16 raw) { return bit_cast<Vec<float>>(__builtin_convertvector(raw, Vec32) << 16); }

// Round to nearest even; a NaN stays one.
inline Vec16 narrow(bf16, Vec<float> v) {
  Vec32 u = bit_cast<Vec32>(v);
  Vec32 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  Vec32 is_nan = bit_cast<Vec32>(v != v);
  return __builtin_convertvector((is_nan & ((u >> 16) | 0x40)) | (~is_nan & rounded), Vec16);
}

#if defined(__AVX512F__)
inline Vec<float> widen(f16, Vec16 raw) { return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, bit_cast<__m256i>(raw)); }
inline Vec16 narrow(f16, Vec<float> v) {
  return bit_cast<Vec16>(_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
inline Vec<float> widen(f16, Vec16 raw) { return (Vec<float>)_mm256_cvtph_ps(bit_cast<__m128i>(raw)); }
inline Vec16 narrow(f16, Vec<float> v) {
  return bit_cast<Vec16>(_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
// Shifted into a float's fields, a half is too small by 2^112; the multiplication also normalises subnormals.
inline Vec<float> widen(f16, Vec16 raw) {
  Vec32 h = __builtin_convertvector(raw, Vec32);
  Vec32 sign = (h & 0x8000) << 16, rest = (h & 0x7fff) << 13;
  Vec32 finite = bit_cast<Vec32>(bit_cast<Vec<float>>(rest) * 0x1p112f);
  Vec32 special = bit_cast<Vec32>((h & 0x7c00) == 0x7c00);
  return bit_cast<Vec<float>>(sign | (special & (rest | 0x7f800000)) | (~special & finite));
}
// Normal results round in the integer domain; subnormal ones by adding 0.5, whose last bit is worth 2^-24.
inline Vec16 narrow(f16, Vec<float> v) {
  Vec32 u = bit_cast<Vec32>(v), sign = (u >> 16) & 0x8000, rest = u & 0x7fffffff;
  Vec32 normal = (rest - (112u << 23) + 0xfff + ((rest >> 13) & 1)) >> 13;
  Vec32 subnormal = bit_cast<Vec32>(bit_cast<Vec<float>>(rest) + 0.5f) - 0x3f000000;
  Vec32 tiny = bit_cast<Vec32>(rest < (113u << 23)), huge = bit_cast<Vec32>(rest >= 0x477ff000);
  Vec32 nan = bit_cast<Vec32>(rest > 0x7f800000);
  Vec32 half = (tiny & subnormal) | (~tiny & normal);
  half = (huge & 0x7c00) | (~huge & half);
  return __builtin_convertvector(sign | half | (nan & 0x200), Vec16);
}
#endif

template <class T>
inline Vec<Acc<T>> load(const T* p) {
  if constexpr (sizeof(T) == 2) {
    Vec16 raw;
    __builtin_memcpy(&raw, p, sizeof(raw));
    return widen(T{}, raw);
  } else {
    return *reinterpret_cast<const typename Simd<T>::Loose*>(p);
  }
}

template <class T>
inline void store(T* p, Vec<Acc<T>> v) {
  if constexpr (sizeof(T) == 2) {
    Vec16 raw = narrow(T{}, v);
    __builtin_memcpy(p, &raw, sizeof(raw));
  } else {
    *reinterpret_cast<typename Simd<T>::Loose*>(p) = v;
  }
}

// The first `count` lanes, 0 < count <= lanes; the others load as zero and are not touched in memory.
template <class T>
inline Vec<Acc<T>> load(const T* p, int64_t count) {
  if (count >= kLanes<Acc<T>>) return load(p);
#if defined(__AVX512BW__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 2) return widen(T{}, bit_cast<Vec16>(_mm256_maskz_loadu_epi16(mask, p)));
  if constexpr (sizeof(T) == 4) return (Vec<Acc<T>>)_mm512_maskz_loadu_ps(mask, p);
  if constexpr (sizeof(T) == 8) return (Vec<Acc<T>>)_mm512_maskz_loadu_pd(mask, p);
#else
  T lanes[kLanes<Acc<T>>] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}

template <class T>
inline void store(T* p, Vec<Acc<T>> v, int64_t count) {
  if (count >= kLanes<Acc<T>>) return store(p, v);
#if defined(__AVX512BW__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 2) _mm256_mask_storeu_epi16(p, mask, bit_cast<__m256i>(narrow(T{}, v)));
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, mask, (__m512)v);
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(p, mask, (__m512d)v);
#else
  T lanes[kLanes<Acc<T>>];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
#endif
}

// max(v, 0) that keeps a NaN, as torch.relu does.
template <class A>
inline Vec<A> relu(Vec<A> v) {
  return v <= A(0) ? Vec<A>{} : v;
}

template <class A>
inline Vec<A> drop_lanes(Vec<A> v, int64_t from) {
  for (int64_t lane = from; lane < kLanes<A>; ++lane) v[lane] = 0;
  return v;
}

template <class A>
using LaneIndices = std::make_integer_sequence<int, kLanes<A>>;

template <class A, int distance, int... lane>
inline Vec<A> add_at_distance(Vec<A> v, std::integer_sequence<int, lane...>) {
  return v + __builtin_shufflevector(v, v, (lane ^ distance)...);
}

template <class A, int distance = kLanes<A> / 2>
inline A sum_lanes(Vec<A> v) {
  v = add_at_distance<A, distance>(v, LaneIndices<A>{});
  if constexpr (distance == 1) return v[0];
  else return sum_lanes<A, distance / 2>(v);
}

template <class A, int distance, int... lane>
inline void exchange(Vec<A>& first, Vec<A>& second, std::integer_sequence<int, lane...>) {
  constexpr int n = kLanes<A>;
  const Vec<A> x = first, y = second;
  first = __builtin_shufflevector(x, y, (lane & distance ? n + lane - distance : lane)...);
  second = __builtin_shufflevector(x, y, (lane & distance ? n + lane : lane + distance)...);
}

// A square block of lanes x lanes: v[i] holds row i, and column i on return.
template <class A, int distance = 1>
inline void transpose(Vec<A> (&v)[kLanes<A>]) {
  if constexpr (distance < kLanes<A>) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<A>; ++i)
      if (!(i & distance)) exchange<A, distance>(v[i], v[i + distance], LaneIndices<A>{});
    transpose<A, 2 * distance>(v);
  }
}

}  // namespace gala::cpu::GALA_ISA

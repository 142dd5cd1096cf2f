#include "warp.h"

#include <bit>
#include <cmath>
#include <limits>

#include "memory.h"
#include "running.h"
#include "shared.h"

namespace gala::shim {
namespace {

template <class T>
T& of(void** lanes, int lane) {
  return *static_cast<T*>(lanes[lane]);
}

uint16_t half_of(const uint32_t* words, int index) {
  return static_cast<uint16_t>(words[index / 2] >> (index % 2 * 16));
}

// The 8x8 matrices' rows come from lanes 8 j to 8 j + 7 for matrix j.
template <class Word>
void spread(void** lanes, Word word) {
  uint32_t addresses[WARP];
  for (int i = 0; i < WARP; ++i) addresses[i] = of<LoadMatrix>(lanes, i).address;
  count_access(addresses, ~0u, sizeof(LoadMatrix::row), self().site);
  for (int j = 0; j < 4; ++j)
    for (int lane = 0; lane < WARP; ++lane) {
      auto row = [&](int i) -> const uint32_t* { return of<LoadMatrix>(lanes, 8 * j + i).row; };
      const uint32_t value = word(row, lane / 4, lane % 4);
      if (value == POISON) fail("loads a matrix of shared memory that nothing was written to");
      of<LoadMatrix>(lanes, lane).r[j] = value;
    }
}

template <Operand type>
float operand(uint32_t word, int half) {
  if constexpr (type == Operand::tf32) {
    if (word == POISON) fail("multiplies what nothing was written to");
    return std::bit_cast<float>(word & 0xFFFFE000u);  // the rest of the mantissa is not there
  } else {
    const auto bits = static_cast<uint16_t>(word >> (half * 16));
    if (bits == POISON_HALF) fail("multiplies what nothing was written to");
    return type == Operand::bf16 ? from_bf16(bits) : from_f16(bits);
  }
}

}  // namespace

float truncated(double sum) {
  const float nearest = static_cast<float>(sum);
  if (std::isinf(nearest) && std::fabs(sum) < std::ldexp(1.0, 128))
    return std::copysign(std::numeric_limits<float>::max(), nearest);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

void shuffle(void** lanes) {
  for (int i = 0; i < WARP; ++i) {
    auto& to = of<Shuffle>(lanes, i);
    to.got = of<Shuffle>(lanes, to.from >= 0 && to.from < WARP ? to.from : i).value;
  }
}

void vote(void** lanes) {
  uint32_t all = 0;
  for (int i = 0; i < WARP; ++i) all |= of<uint32_t>(lanes, i) << i;
  for (int i = 0; i < WARP; ++i) of<uint32_t>(lanes, i) = all;
}

void load_matrix(void** lanes) {
  spread(lanes, [](auto row, int i, int pair) { return row(i)[pair]; });
}

void load_matrix_transposed(void** lanes) {
  spread(lanes, [](auto row, int i, int pair) {
    return half_of(row(2 * pair), i) | uint32_t{half_of(row(2 * pair + 1), i)} << 16;
  });
}

template <Operand type>
void multiply(void** lanes) {
  constexpr int depth = type == Operand::tf32 ? 8 : 16, halves = depth / 8;
  double a[16][depth], b[depth][8];
  for (int lane = 0; lane < WARP; ++lane) {
    const Mma& mine = of<Mma>(lanes, lane);
    const int group = lane / 4, within = lane % 4;
    for (int h = 0; h < halves; ++h) {
      const int k = halves * within + h;
      for (int i = 0; i < 4; ++i) a[group + i % 2 * 8][k + i / 2 * (depth / 2)] = operand<type>(mine.a[i], h);
      for (int i = 0; i < 2; ++i) b[k + i * (depth / 2)][group] = operand<type>(mine.b[i], h);
    }
  }
  for (int m = 0; m < 16; ++m) {
    double sum[8] = {};
    for (int k = 0; k < depth; ++k)
      for (int n = 0; n < 8; ++n) sum[n] += a[m][k] * b[k][n];
    for (int n = 0; n < 8; ++n) {
      float& d = of<Mma>(lanes, m % 8 * 4 + n / 2).d[m / 8 * 2 + n % 2];
      d = truncated(d + sum[n]);
    }
  }
}

template void multiply<Operand::bf16>(void**);
template void multiply<Operand::f16>(void**);
template void multiply<Operand::tf32>(void**);

float from_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

float from_f16(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16, magnitude = bits & 0x7FFFu;
  const uint32_t same_bits = magnitude << 13;
  if (magnitude >= 0x7C00) return std::bit_cast<float>(sign | same_bits | 0x7F800000u);
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::bit_cast<float>(same_bits) * 0x1p112f));
}

uint16_t to_bf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return std::isnan(value) ? 0x7FFF : static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

uint16_t to_f16(float value) {
  const auto sign = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16 & 0x8000u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return 0x7FFF;
  if (magnitude >= 65520) return sign | 0x7C00;
  if (magnitude < 0x1p-14f) return static_cast<uint16_t>(sign | static_cast<int>(std::nearbyint(magnitude * 0x1p24f)));
  const auto bits = std::bit_cast<uint32_t>(magnitude) - (112u << 23);
  return static_cast<uint16_t>(sign | (bits + 0xFFF + (bits >> 13 & 1)) >> 13);
}

}  // namespace gala::shim

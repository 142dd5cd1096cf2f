// csrc/cuda/primitives.cuh for the host: the same names. Each CUDA thread is a fiber, and every access is checked.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <runtime.cuh>
#include <type_traits>

#include "memory.h"
#include "scheduler.h"
#include "shared.h"
#include "warp.h"

#define GALA_KERNEL(threads, blocks) void
#define GALA_DEVICE inline
#define GALA_UNROLL
#define GALA_ROLL

namespace gala::cuda {

using shim::Site;

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

inline uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return shim::from_bf16(x.bits); }
inline float to_float(f16 x) { return shim::from_f16(x.bits); }

template <class T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) return x;
  else if constexpr (std::is_same_v<T, bf16>) return {shim::to_bf16(x)};
  else return {shim::to_f16(x)};
}

template <class T>
uint32_t pack_pair(float first, float second) {
  return from_float<T>(first).bits | uint32_t{from_float<T>(second).bits} << 16;
}

inline uint32_t round_tf32(float value) {  // ties away from zero
  if (std::isnan(value)) return 0x7FFFFFFF;
  return std::isinf(value) ? bits_of(value) : (bits_of(value) + 0x1000) & 0xFFFFE000u;
}

// As inaccurate as the PTX manual allows: tanh 2^-11, ex2 2^-22, rcp 1 ulp; but powers of two come out exact.
inline float tanh_approx(float value) { return float_of((bits_of(std::tanh(value)) + 0x1000) & 0xFFFFE000u); }
inline float inexact(float value, float relative) {
  return (bits_of(value) & 0x7FFFFF) == 0 ? value : value * (1 + relative);
}
inline float exp2_approx(float value) { return inexact(std::exp2(value), 0x1p-22f); }
inline float reciprocal_approx(float value) { return inexact(1 / value, 0x1p-23f); }

inline uint32_t multiply_high(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
inline uint32_t byte_signs(uint32_t low, uint32_t high, int index) {
  auto sign = [index](uint32_t word) { return word >> (8 * index + 7) & 1 ? 0xFFFFu : 0u; };
  return sign(low) | sign(high) << 16;
}

template <class T, int n>
struct alignas(sizeof(T) * n) Vec {
  T at[n];
};

inline int thread_index() { return shim::position.thread; }
inline int threads_in_block() { return shim::position.threads; }
inline int lane() { return thread_index() % shim::WARP; }
inline int warp() { return thread_index() / shim::WARP; }
inline int block_x() { return static_cast<int>(shim::position.block.x); }

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(shim::shared_memory(128));
}

inline void block_barrier(Site site = Site::current()) { shim::meet_block(site); }
inline void warp_barrier(Site site = Site::current()) { shim::meet_warp("warp_barrier", true, site); }

template <class T>
T shuffled(const char* what, T value, int from, Site site) {
  static_assert(sizeof(T) == 4);
  shim::Shuffle mine{std::bit_cast<uint32_t>(value), from, 0};
  shim::meet_warp(what, false, site, &mine, shim::shuffle);
  return std::bit_cast<T>(mine.got);
}

template <class T>
T shuffle_xor(T value, int mask, Site site = Site::current()) {
  return shuffled("shuffle_xor", value, lane() ^ mask, site);
}
template <class T>
T shuffle_down(T value, int distance, Site site = Site::current()) {
  return shuffled("shuffle_down", value, lane() + distance, site);
}
template <class T>
T shuffle(T value, int from, Site site = Site::current()) {
  return shuffled("shuffle", value, from % shim::WARP, site);
}

inline uint32_t ballot(bool set, Site site = Site::current()) {
  uint32_t mine = set;
  shim::meet_warp("ballot", false, site, &mine, shim::vote);
  return mine;
}

// Until the copy is waited for, its destination holds poison: the hardware may write it at any time.
template <int bytes>
void copy_async(void* shared, const void* global, bool inside, Site site = Site::current()) {
  shim::read_shared(shared, bytes, site);
  if (inside) shim::check_global(global, bytes, bytes, false, site);
  else shim::check_aligned(global, bytes, site);
  if constexpr (bytes == 2) {
    *static_cast<uint16_t*>(shared) = inside ? *static_cast<const uint16_t*>(global) : uint16_t{0};
    shim::write_peer(shared, bytes);
  } else {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16);
    for (int i = 0; i < bytes / 4; ++i) static_cast<uint32_t*>(shared)[i] = shim::POISON;
    shim::issue({static_cast<uint32_t*>(shared), static_cast<const uint32_t*>(global), bytes / 4, inside});
  }
}
inline void copy_commit() { shim::commit(); }
template <int pending>
void copy_wait() {
  for (shim::Copy copy; shim::next_due(pending, copy);) {
    for (int i = 0; i < copy.words; ++i) copy.to[i] = copy.inside ? copy.from[i] : 0;
    shim::write_peer(copy.to, static_cast<size_t>(copy.words) * sizeof *copy.to);
  }
}

inline void loaded(uint32_t (&r)[4], const void* row, void (*load)(void**), const char* what, Site site) {
  shim::LoadMatrix mine;
  shim::check_shared(row, sizeof mine.row, sizeof mine.row, site);
  std::memcpy(mine.row, row, sizeof mine.row);
  mine.address = shim::shared_address(row);
  shim::meet_warp(what, false, site, &mine, load);
  std::memcpy(r, mine.r, sizeof r);
}
inline void load_matrix_x4(uint32_t (&r)[4], const void* row, Site site = Site::current()) {
  loaded(r, row, shim::load_matrix, "load_matrix_x4", site);
}
inline void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row, Site site = Site::current()) {
  loaded(r, row, shim::load_matrix_transposed, "load_matrix_x4_transposed", site);
}
inline void multiplied(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], void (*multiply)(void**),
                       const char* what, Site site) {
  shim::Mma mine;
  std::memcpy(mine.d, d, sizeof d);
  std::memcpy(mine.a, a, sizeof a);
  std::memcpy(mine.b, b, sizeof b);
  shim::meet_warp(what, false, site, &mine, multiply);
  std::memcpy(d, mine.d, sizeof d);
}
inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16, Site site = Site::current()) {
  multiplied(d, a, b, shim::multiply<shim::Operand::bf16>, "mma", site);
}
inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16, Site site = Site::current()) {
  multiplied(d, a, b, shim::multiply<shim::Operand::f16>, "mma", site);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site = Site::current()) {
  multiplied(d, a, b, shim::multiply<shim::Operand::tf32>, "mma_tf32", site);
}

template <class V>
V load_global(const V* from, Site site = Site::current()) {
  shim::check_global(from, sizeof(V), sizeof(V), false, site);
  return *from;
}
template <class V>
V load_streaming(const V* from, Site site = Site::current()) {
  return load_global(from, site);
}
template <class V>
void store_global(V* to, V value, Site site = Site::current()) {
  shim::check_global(to, sizeof(V), sizeof(V), true, site);
  *to = value;
}

template <class V>
V load_shared(const V* from, Site site = Site::current()) {
  shim::read_shared(from, sizeof(V), site);
  return *from;
}
template <class V>
void store_shared(V* to, V value, Site site = Site::current()) {
  shim::write_shared(to, sizeof(V), site);
  *to = value;
}

}  // namespace gala::cuda

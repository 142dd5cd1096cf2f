// Every CUDA construct and hardware instruction that the kernels use, one function each. The kernels themselves name
// nothing of CUDA, so that they run without a GPU against tests/cpp/shim/primitives.cuh, which has the same names on
// the host.
#pragma once

#include <cstdint>

#include "runtime.cuh"

// Stands before a kernel's `void name(Params)`, whose parameter is one trivially copyable struct. At least `blocks`
// blocks of `threads` threads share a multiprocessor.
#define GALA_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define GALA_DEVICE __device__ __forceinline__
// These stand before a loop.
#define GALA_UNROLL _Pragma("unroll")
#define GALA_ROLL _Pragma("unroll 1")

namespace gala::cuda {

// ---- numbers

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

GALA_DEVICE uint32_t bits_of(float value) { return __float_as_uint(value); }
GALA_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

GALA_DEVICE float to_float(float value) { return value; }
GALA_DEVICE float to_float(bf16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }
GALA_DEVICE float to_float(f16 value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}

// Rounds to the nearest number, ties to even.
template <class T>
GALA_DEVICE T from_float(float value) = delete;
template <>
GALA_DEVICE float from_float<float>(float value) {
  return value;
}
template <>
GALA_DEVICE bf16 from_float<bf16>(float value) {
  bf16 narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
}
template <>
GALA_DEVICE f16 from_float<f16>(float value) {
  f16 narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(value));
  return narrow;
}

// Two 16-bit numbers in one register, the first in the low half.
template <class T>
GALA_DEVICE uint32_t pack_pair(float first, float second) = delete;
template <>
GALA_DEVICE uint32_t pack_pair<bf16>(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
template <>
GALA_DEVICE uint32_t pack_pair<f16>(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}

// Rounds to TF32's 10 bits of mantissa, to the nearest, ties away from zero. The other bits are set to 0, which the
// instruction alone does not promise.
GALA_DEVICE uint32_t round_tf32(float value) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded & 0xffffe000u;
}

GALA_DEVICE float tanh_approx(float value) {
  float result;
  asm("tanh.approx.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}
GALA_DEVICE float exp2_approx(float value) {
  float result;
  asm("ex2.approx.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}
GALA_DEVICE float reciprocal_approx(float value) {
  float result;
  asm("rcp.approx.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}
GALA_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// Looks at byte `index`, 0 to 3, of `low` and of `high`: the low half of the result is 0xffff where the former is
// negative as a signed byte, else 0, and the high half is 0xffff where the latter is.
GALA_DEVICE uint32_t byte_signs(uint32_t low, uint32_t high, int index) {
  uint32_t mask;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(mask) : "r"(low), "r"(high), "r"(0xcc88 + 0x1111 * index));
  return mask;
}

// ---- threads

GALA_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
GALA_DEVICE int threads_in_block() { return static_cast<int>(blockDim.x); }
GALA_DEVICE int lane() { return static_cast<int>(threadIdx.x % 32); }
GALA_DEVICE int warp() { return static_cast<int>(threadIdx.x / 32); }
GALA_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }

GALA_DEVICE void block_barrier() { __syncthreads(); }
GALA_DEVICE void warp_barrier() { __syncwarp(); }

// All lanes of the warp take part.
template <class V>  // float, int or uint32_t
GALA_DEVICE V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class V>
GALA_DEVICE V shuffle_down(V value, int lanes) {
  return __shfl_down_sync(0xffffffffu, value, static_cast<unsigned>(lanes));
}
template <class V>
GALA_DEVICE V shuffle(V value, int from) {
  return __shfl_sync(0xffffffffu, value, from);
}
GALA_DEVICE uint32_t ballot(bool set) { return __ballot_sync(0xffffffffu, set); }

// ---- memory

// The block's dynamic shared memory, aligned to 128 bytes.
template <class T>
GALA_DEVICE T* shared_memory() {
  extern __shared__ __align__(128) unsigned char gala_shared[];
  return reinterpret_cast<T*>(gala_shared);
}

// n values that are loaded and stored as one, 2 to 16 bytes in all.
template <class T, int n>
struct alignas(sizeof(T) * n) Vec {
  T at[n];
};

namespace detail {

template <int bytes>
struct Word;
template <>
struct Word<2> {
  using Type = unsigned short;
};
template <>
struct Word<4> {
  using Type = unsigned;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};
template <class V>
using WordOf = typename Word<sizeof(V)>::Type;

GALA_DEVICE uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

}  // namespace detail

// Loads with one instruction. V has 2, 4, 8 or 16 bytes, and the address is a multiple of that.
template <class V>
GALA_DEVICE V load_global(const V* from) {
  const auto word = *reinterpret_cast<const detail::WordOf<V>*>(from);
  V value;
  __builtin_memcpy(&value, &word, sizeof(V));
  return value;
}
// Loads what is not needed again: it is the first to leave the caches.
template <class V>
GALA_DEVICE V load_streaming(const V* from) {
  const auto word = __ldcs(reinterpret_cast<const detail::WordOf<V>*>(from));
  V value;
  __builtin_memcpy(&value, &word, sizeof(V));
  return value;
}
template <class V>
GALA_DEVICE void store_global(V* to, V value) {
  detail::WordOf<V> word;
  __builtin_memcpy(&word, &value, sizeof(V));
  *reinterpret_cast<detail::WordOf<V>*>(to) = word;
}
template <class V>
GALA_DEVICE V load_shared(const V* from) {
  return load_global(from);
}
template <class V>
GALA_DEVICE void store_shared(V* to, V value) {
  store_global(to, value);
}

// Queues a copy of 4, 8 or 16 bytes into shared memory; where not `inside`, of zeros, and then `global`, which has to
// be aligned all the same, is not read. The copy is done once its group has been waited for.
template <int bytes>
GALA_DEVICE void copy_async(void* shared, const void* global, bool inside) {
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"(detail::shared_address(shared)), "l"(global), "r"(inside ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :
                 : "r"(detail::shared_address(shared)), "l"(global), "n"(bytes), "r"(inside ? bytes : 0)
                 : "memory");
}
// Makes this thread's copies since the last call one group.
GALA_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all but the last `pending` groups of this thread are done.
template <int pending>
GALA_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- tensor cores: all lanes of the warp take part; fragments are laid out as in the PTX manual

// Loads four 8 x 8 matrices of 16-bit numbers. Lane i gives the address of row i % 8 of matrix i / 8: 16 bytes, aligned
// to
// 16. Register j receives two neighbours of matrix j, in row lane / 4 from column 2 (lane % 4) on.
GALA_DEVICE void load_matrix_x4(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(detail::shared_address(shared_row))
               : "memory");
}
// The same of the transposed matrices.
GALA_DEVICE void load_matrix_x4_transposed(uint32_t (&r)[4], const void* shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(detail::shared_address(shared_row))
               : "memory");
}

#define GALA_MMA(shape_and_types)                                                                            \
  asm("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// d [16, 8] += a [16, 16] b [16, 8]
GALA_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
  GALA_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
GALA_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16) {
  GALA_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
// d [16, 8] += a [16, 8] b [8, 8], of whose numbers only TF32's bits are read
GALA_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  GALA_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef GALA_MMA

}  // namespace gala::cuda

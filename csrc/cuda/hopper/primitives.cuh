// The instructions that Hopper (compute capability 9.0) adds to those of ../primitives.cuh: clusters of blocks,
// barriers that count bytes, bulk copies, and products of a warpgroup. tests/cpp/shim/hopper/primitives.cuh has the
// same names on the host.
#pragma once

#include "../primitives.cuh"

namespace gala::cuda {

// Whether the code being compiled may contain these instructions, which is so for compute_90a alone.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasHopper = true;
#else
constexpr bool kHasHopper = false;
#endif

// ---- clusters: some blocks that run at the same time and reach each other's shared memory

// The block's dynamic shared memory, at the same place in every block, aligned for tiles of products.
template <class T>
GALA_DEVICE T* tile_memory() {
  extern __shared__ __align__(1024) unsigned char gala_tiles[];
  return reinterpret_cast<T*>(gala_tiles);
}

GALA_DEVICE int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
// Waits for all threads of the cluster, and orders their accesses to shared memory. A block may access other blocks'
// shared memory only after its first such barrier and before its last.
GALA_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

namespace detail {

GALA_DEVICE uint32_t peer_address(const void* shared, int rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(shared)), "r"(rank));
  return address;
}

}  // namespace detail

// What lies at `shared` in block `rank`.
GALA_DEVICE float load_peer(const float* shared, int rank) {
  float value;
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(detail::peer_address(shared, rank)) : "memory");
  return value;
}
GALA_DEVICE void store_peer(float* shared, int rank, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(detail::peer_address(shared, rank)), "f"(value) : "memory");
}

// ---- barriers in shared memory: a phase ends with its last arrival once all bytes expected in it have come

struct Barrier {
  uint64_t state;
};

GALA_DEVICE void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(detail::shared_address(barrier)), "r"(arrivals)
               : "memory");
}
// To be called by the thread that has made barriers, before a barrier of the cluster: it makes them known to other
// blocks and to copies.
GALA_DEVICE void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// Arrives, and makes the phase wait for so many bytes.
GALA_DEVICE void arrive_expecting(Barrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(detail::shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
// Arrives at the barrier of block `rank`. What this thread and its products have read may be overwritten from then on.
GALA_DEVICE void arrive_at(Barrier* barrier, int rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(detail::peer_address(barrier, rank)) : "memory");
}
// The same; who waits with wait_for_peers also sees all that this thread has written, or has seen written.
GALA_DEVICE void arrive_with_writes(Barrier* barrier, int rank) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(detail::peer_address(barrier, rank))
               : "memory");
}

#define GALA_WAIT(order)                                              \
  asm volatile(                                                       \
      "{\n.reg .pred ended;\nagain:\n"                                \
      "mbarrier.try_wait.parity" order                                \
      ".shared::cta.b64 ended, [%0], %1;\n"                           \
      "@!ended bra again;\n}" ::"r"(detail::shared_address(barrier)), \
      "r"(parity)                                                     \
      : "memory")
// Waits until the phase of this parity has ended, so that its copies are there: 0 for the first phase, 1 for the
// second, and so on in turns.
GALA_DEVICE void wait_for(Barrier* barrier, int parity) { GALA_WAIT(""); }
// The same; the writes of all who have arrived with arrive_with_writes are there too.
GALA_DEVICE void wait_for_peers(Barrier* barrier, int parity) { GALA_WAIT(".acquire.cluster"); }
#undef GALA_WAIT

// ---- bulk copies: multiples of 16 bytes, aligned to 16; they complete on a barrier

GALA_DEVICE void copy_bulk(void* shared, const void* global, int bytes, Barrier* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   detail::shared_address(shared)),
               "l"(global), "r"(bytes), "r"(detail::shared_address(barrier))
               : "memory");
}
// Copies to the same place in each of the cluster's blocks, where it completes on the barrier at the same place.
GALA_DEVICE void copy_bulk_to_all(void* shared, const void* global, int bytes, Barrier* barrier, int blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
      "%4;" ::"r"(detail::shared_address(shared)),
      "l"(global), "r"(bytes), "r"(detail::shared_address(barrier)), "h"(static_cast<uint16_t>((1 << blocks) - 1))
      : "memory");
}

// ---- products of a warpgroup: the 4 warps from a multiple of 4 on

// Begins a group of products, which can then read the registers written so far.
GALA_DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends the group.
GALA_DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until all groups are done; d is what they have added to.
template <int n>
GALA_DEVICE void products_wait(float (&d)[n]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  GALA_UNROLL for (int i = 0; i < n; ++i) asm volatile("" : "+f"(d[i])::"memory");  // nothing reads it before the wait
}

// Describes the right operand [columns, 16] whose first number is at `tile`. It lies in lines of 128 bytes; eight lines
// are 1024 bytes and aligned to that; the 16-byte vector i of line j is at place i ^ j % 8.
GALA_DEVICE uint64_t tile_operand(const void* tile) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightLines = uint64_t{1024 >> 4} << 32, kUnused = 1 << 16;
  return kSwizzle128 | kEightLines | kUnused | (detail::shared_address(tile) & 0x3ffff) >> 4;
}

#define GALA_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define GALA_32 GALA_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define GALA_64                                                                        \
  GALA_32                                                                              \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define GALA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define GALA_D16(i) GALA_D4(i), GALA_D4(i + 4), GALA_D4(i + 8), GALA_D4(i + 12)
#define GALA_D32(i) GALA_D16(i), GALA_D16(i + 16)
#define GALA_D64(i) GALA_D32(i), GALA_D32(i + 32)
#define GALA_PRODUCT(columns, type, list, a0, a1, a2, a3, descriptor, outputs)                                 \
  asm volatile("{\n.reg .pred add;\nsetp.eq.u32 add, 0, 0;\nwgmma.mma_async.sync.aligned.m64n" #columns        \
               "k16.f32." type "." type " {" list "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #descriptor \
               ", add, 1, 1, 0;\n}"                                                                            \
               : outputs                                                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)                                            \
               : "memory")
#define GALA_PRODUCT_OF(type)                                                                   \
  if constexpr (n == 16) GALA_PRODUCT(32, type, GALA_16, 16, 17, 18, 19, 20, GALA_D16(0));      \
  else if constexpr (n == 32) GALA_PRODUCT(64, type, GALA_32, 32, 33, 34, 35, 36, GALA_D32(0)); \
  else GALA_PRODUCT(128, type, GALA_64, 64, 65, 66, 67, 68, GALA_D64(0))

// d [64, 2 n] += a [64, 16] b [16, 2 n]. Each warp holds the 16 rows from 16 (warp % 4) on: a is laid out as mma's a,
// and d as mma's d for each 8 columns. Until the wait, d and a must not be touched, and b is read.
template <int n>
GALA_DEVICE void multiply_tile(float (&d)[n], const uint32_t (&a)[4], uint64_t b, bf16) {
  static_assert(n == 16 || n == 32 || n == 64);
  GALA_PRODUCT_OF("bf16");
}
template <int n>
GALA_DEVICE void multiply_tile(float (&d)[n], const uint32_t (&a)[4], uint64_t b, f16) {
  static_assert(n == 16 || n == 32 || n == 64);
  GALA_PRODUCT_OF("f16");
}
#undef GALA_16
#undef GALA_32
#undef GALA_64
#undef GALA_D4
#undef GALA_D16
#undef GALA_D32
#undef GALA_D64
#undef GALA_PRODUCT
#undef GALA_PRODUCT_OF

}  // namespace gala::cuda

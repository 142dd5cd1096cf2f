// csrc/cuda/hopper/primitives.cuh for the host: the same names; the blocks of a cluster run at the same time.
#pragma once

#include "../barrier.h"
#include "../primitives.cuh"
#include "../warpgroup.h"

namespace gala::cuda {

constexpr bool kHasHopper = true;

template <class T>
T* tile_memory() {
  return reinterpret_cast<T*>(shim::shared_memory(1024));
}
inline int cluster_rank() { return shim::position.rank; }
inline void cluster_barrier(Site site = Site::current()) { shim::meet_cluster(site); }

inline float load_peer(const float* shared, int rank, Site site = Site::current()) {
  return *reinterpret_cast<const float*>(shim::in_peer(shared, rank, sizeof(float), site));
}
inline void store_peer(float* shared, int rank, float value, Site site = Site::current()) {
  auto* to = reinterpret_cast<float*>(shim::in_peer(shared, rank, sizeof(float), site));
  *to = value;
  shim::write_peer(to, sizeof *to);
}

struct alignas(8) Barrier {
  shim::Phases phases;
};
inline void barrier_init(Barrier* barrier, int arrivals, Site site = Site::current()) {
  shim::init(&barrier->phases, arrivals, site);
}
inline void barriers_made() { shim::publish(); }
inline void arrive_expecting(Barrier* barrier, int bytes, Site site = Site::current()) {
  shim::arrive(&barrier->phases, cluster_rank(), bytes, false, site);
}
inline void arrive_at(Barrier* barrier, int rank, Site site = Site::current()) {
  shim::arrive(&barrier->phases, rank, 0, false, site);
}
inline void arrive_with_writes(Barrier* barrier, int rank, Site site = Site::current()) {
  shim::arrive(&barrier->phases, rank, 0, true, site);
}
inline void wait_for(Barrier* barrier, int parity, Site site = Site::current()) {
  shim::wait(&barrier->phases, parity, false, site);
}
inline void wait_for_peers(Barrier* barrier, int parity, Site site = Site::current()) {
  shim::wait(&barrier->phases, parity, true, site);
}

inline void copy_bulk(void* shared, const void* global, int bytes, Barrier* barrier, Site site = Site::current()) {
  shim::copy_bulk(shared, global, bytes, &barrier->phases, cluster_rank(), site);
}
inline void copy_bulk_to_all(void* shared, const void* global, int bytes, Barrier* barrier, int blocks,
                             Site site = Site::current()) {
  for (int rank = 0; rank < blocks; ++rank) shim::copy_bulk(shared, global, bytes, &barrier->phases, rank, site);
}

inline void products_begin(Site site = Site::current()) { shim::begin_products(site); }
inline void products_commit(Site site = Site::current()) { shim::commit_products(site); }
template <int n>
void products_wait(float (&)[n], Site site = Site::current()) {
  shim::wait_products(site);
}
inline uint64_t tile_operand(const void* tile) { return shim::descriptor(tile, 16, 1024, shim::SWIZZLE_128); }
template <int n>
void multiply_tile(float (&d)[n], const uint32_t (&a)[4], uint64_t b, bf16, Site site = Site::current()) {
  shim::issue_product(d, n, a, b, shim::Operand::bf16, site);
}
template <int n>
void multiply_tile(float (&d)[n], const uint32_t (&a)[4], uint64_t b, f16, Site site = Site::current()) {
  shim::issue_product(d, n, a, b, shim::Operand::f16, site);
}

}  // namespace gala::cuda

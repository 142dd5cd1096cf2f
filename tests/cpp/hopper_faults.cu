// A kernel that copies a tile and multiplies it, into which faults can be planted, to show which of Hopper's rules the
// shim checks.
#include <hopper/primitives.cuh>

#include "errors.h"

using namespace gala::cuda;

namespace {

enum Fault {
  NONE,
  FENCED_STORE,  // not a fault
  STORE_BEFORE_COPY,
  STORE_UNDER_COPY,
  STORE_BEFORE_PRODUCT,
  STORE_UNDER_PRODUCT,
  FENCE_OF_ANOTHER_THREAD,
  SMALL_ALIGNMENT,
  TWO_ALIGNMENTS,
  NOT_PUBLISHED,
  MADE_TWICE,
  NO_ARRIVALS,
  MANY_ARRIVALS,
  MANY_BYTES,
  FEW_BYTES,
  BYTES_THAT_NEVER_COME,
  ODD_SIZE,
  ODD_PLACE,
  ODD_SOURCE,
  LARGE_COPY,
  PARITY,
};

constexpr int LINES = 32, TILE_BYTES = LINES * 128;

struct Transfer {
  const char* from;  // [TILE_BYTES]
  float* to;  // [128]: zeros
  int fault;
};

GALA_DEVICE void store_again(char* tile) {
  auto* word = reinterpret_cast<uint32_t*>(tile) + thread_index();
  store_shared(word, load_shared(word));
}

GALA_DEVICE void copy_tile(const Transfer& p, char* tile, Barrier* barrier) {
  barrier_init(barrier, p.fault == NO_ARRIVALS ? 0 : p.fault == MANY_ARRIVALS ? 1 << 20 : 1);
  barrier_init(p.fault == MADE_TWICE ? barrier : barrier + 1, 1);
  if (p.fault != NOT_PUBLISHED) barriers_made();
  if (p.fault == STORE_BEFORE_COPY) store_again(tile);
  arrive_expecting(barrier, p.fault == MANY_BYTES ? 1 << 20 : p.fault == FEW_BYTES ? TILE_BYTES - 16 : TILE_BYTES);
  if (p.fault == BYTES_THAT_NEVER_COME) arrive_expecting(barrier + 1, 16);
  copy_bulk(tile + (p.fault == ODD_PLACE ? 8 : 0), p.from + (p.fault == ODD_SOURCE ? 8 : 0),
            p.fault == ODD_SIZE     ? TILE_BYTES - 8
            : p.fault == LARGE_COPY ? 1 << 20
                                    : TILE_BYTES,
            barrier);
  if (p.fault == STORE_UNDER_COPY) store_again(tile);
}

GALA_KERNEL(128, 1) transfer(Transfer p) {
  if (p.fault == TWO_ALIGNMENTS) shared_memory<char>();
  char* tile = p.fault == SMALL_ALIGNMENT ? shared_memory<char>() : tile_memory<char>();
  auto* barrier = reinterpret_cast<Barrier*>(tile + TILE_BYTES);
  if (thread_index() == 0) copy_tile(p, tile, barrier);
  block_barrier();
  wait_for(barrier, p.fault == PARITY ? 2 : 0);
  const bool fenced = p.fault == FENCED_STORE || p.fault == FENCE_OF_ANOTHER_THREAD;
  if (fenced || p.fault == STORE_BEFORE_PRODUCT) store_again(tile);
  if (fenced && (p.fault == FENCED_STORE || thread_index() == 0)) gala::shim::fence_async();
  block_barrier();
  const uint32_t a[4] = {};
  float d[LINES / 2] = {};
  products_begin();
  multiply_tile(d, a, tile_operand(tile), bf16{});
  products_commit();
  if (p.fault == STORE_UNDER_PRODUCT) store_again(tile);
  products_wait(d);
  store_global(p.to + thread_index(), d[0]);
}

struct Described {
  uint64_t* to;  // the shared memory's address, and the descriptor of a tile there
};

GALA_KERNEL(32, 1) describe(Described p) {
  if (lane() != 0) return;
  const char* tile = tile_memory<char>();
  store_global(p.to, uint64_t{gala::shim::shared_address(tile)});
  store_global(p.to + 1, tile_operand(tile));
}

}  // namespace

extern "C" {

const char* sample_transfer(const char* from, float* to, int fault) {
  return error_of([=] { launch("transfer", transfer, {1}, 128, TILE_BYTES + 16, nullptr, Transfer{from, to, fault}); });
}
// In clusters of so many blocks.
const char* run_describe(uint64_t* to, int cluster) {
  return error_of([=] { launch("describe", describe, {16}, 32, 1024, nullptr, Described{to}, cluster); });
}
}

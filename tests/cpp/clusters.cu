// Small kernels that perform Hopper's instructions: a warpgroup's product, and an exchange between two blocks.
#include <hopper/primitives.cuh>

#include "errors.h"

using namespace gala::cuda;

namespace {

constexpr int LINES = 64, LINE_BYTES = 128, TILE_BYTES = LINES * LINE_BYTES;

struct TileProduct {
  const uint32_t* a;  // [64, 8]: 16 halves a row
  const char* b;  // LINES lines as tile_operand has them
  float* d;  // [64, LINES]
  int k;  // the operands' first column in the tile
  bool is_bf16;
};

GALA_KERNEL(128, 1) tile_product(TileProduct p) {
  char* tile = tile_memory<char>();
  auto* barrier = reinterpret_cast<Barrier*>(tile + TILE_BYTES);
  if (thread_index() == 0) {
    barrier_init(barrier, 1);
    barriers_made();
    arrive_expecting(barrier, TILE_BYTES);
    copy_bulk(tile, p.b, TILE_BYTES, barrier);
  }
  block_barrier();
  wait_for(barrier, 0);
  const int row = warp() * 16 + lane() / 4, pair = lane() % 4;
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) a[i] = load_global(p.a + (row + i % 2 * 8) * 8 + pair + i / 2 * 4);
  float d[LINES / 2];
  for (int i = 0; i < LINES / 2; ++i) {
    const int at = (row + i / 2 % 2 * 8) * LINES + i / 4 * 8 + pair * 2 + i % 2;
    d[i] = load_global(p.d + at);
  }
  products_begin();
  const uint64_t b = tile_operand(tile + p.k * 2);
  p.is_bf16 ? multiply_tile(d, a, b, bf16{}) : multiply_tile(d, a, b, f16{});
  products_commit();
  products_wait(d);
  for (int i = 0; i < LINES / 2; ++i) {
    const int at = (row + i / 2 % 2 * 8) * LINES + i / 4 * 8 + pair * 2 + i % 2;
    store_global(p.d + at, d[i]);
  }
}

struct Exchange {
  const float* from;  // [64]
  float* to;  // [2, 64]
};

// Each block of two copies half of `from` to both, and adds to it what the lanes of the other one send: their number.
GALA_KERNEL(32, 1) exchange(Exchange p) {
  float* values = tile_memory<float>();  // [64], and [32] sent
  auto* copied = reinterpret_cast<Barrier*>(values + 96);
  Barrier* sent = copied + 1;
  const int rank = cluster_rank(), half = rank * 32;
  if (lane() == 0) {
    barrier_init(copied, 1);
    barrier_init(sent, 32);
    barriers_made();
  }
  cluster_barrier();
  if (lane() == 0) {
    arrive_expecting(copied, 64 * 4);
    copy_bulk_to_all(values + half, p.from + half, 32 * 4, copied, 2);
  }
  store_peer(values + 64 + lane(), 1 - rank, static_cast<float>(half + lane()));
  arrive_with_writes(sent, 1 - rank);
  wait_for(copied, 0);
  wait_for_peers(sent, 0);
  for (int i = lane(); i < 64; i += 32)
    store_global(p.to + rank * 64 + i, load_shared(values + i) + load_shared(values + 64 + lane()));
  cluster_barrier();
}

}  // namespace

extern "C" {

const char* run_tile_product(const uint32_t* a, const char* b, float* d, int k, int is_bf16) {
  return error_of([=] {
    launch("tile_product", tile_product, {1}, 128, TILE_BYTES + 16, nullptr, TileProduct{a, b, d, k, is_bf16 != 0});
  });
}
const char* run_exchange_in_cluster(const float* from, float* to) {
  return error_of([=] { launch("exchange", exchange, {2}, 32, 96 * 4 + 16, nullptr, Exchange{from, to}, 2); });
}
}

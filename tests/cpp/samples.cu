// Small kernels into which faults can be planted, to show which faults the shim finds.
#include <primitives.cuh>

#include "errors.h"

using namespace gala::cuda;

namespace {

enum Fault {
  NONE,
  NO_BARRIER_AFTER_WAIT,
  NO_BARRIER_BEFORE_REFILL,
  WRONG_WAIT_COUNT,
  WRONG_FRAGMENT_COLUMN,
  WRONG_MATRIX_ORDER,
  READ_BOUND,
  WRITE_BOUND,
  SHARED_BOUND,
  RAW_READ_BOUND,
  MISALIGNED_COPY,
  UNFILLED_ROWS,
  DIVERGENT_BARRIER,
  DIVERGENT_SHUFFLE,
  EARLY_END,
  UNWAITED_COPY,
  MISALIGNED_ZEROS,
};

constexpr int ROWS = 32, COLUMNS = 8, STEP = 32, PITCH = STEP + 8, STAGES = 2;
constexpr int SHARED_BYTES = STAGES * (ROWS + COLUMNS) * PITCH * 2 + 2 * ROWS * 4;

struct Product {
  const bf16* x;  // [rows, depth], depth a multiple of 8
  const bf16* w;  // [COLUMNS, depth]
  float* out;  // [rows, COLUMNS] = x w^T
  float* sums;  // [rows] of out over the columns
  int rows, depth;
  int fault;
};

struct Tile {
  bf16* x;
  bf16* w;
};

GALA_DEVICE Tile tile(int stage) {
  bf16* x = shared_memory<bf16>() + stage % STAGES * (ROWS + COLUMNS) * PITCH;
  return {x, x + ROWS * PITCH};
}

GALA_DEVICE void fill(const Product& p, int step) {
  const Tile t = tile(step);
  constexpr int chunk = 8, chunks = STEP / chunk;
  for (int i = thread_index(); i < (ROWS + COLUMNS) * chunks; i += threads_in_block()) {
    const int row = i / chunks, k = step * STEP + i % chunks * chunk, from = block_x() * ROWS + row;
    const int bound = p.rows + (p.fault == READ_BOUND);
    const bool is_x = row < ROWS, inside = k < p.depth && (!is_x || from < bound);
    if (p.fault == UNFILLED_ROWS && !inside) continue;
    const bf16* source = is_x ? p.x + from * p.depth + k : p.w + (row - ROWS) * p.depth + k;
    const bool misaligned = p.fault == MISALIGNED_COPY || (p.fault == MISALIGNED_ZEROS && !inside);
    copy_async<16>(t.x + row * PITCH + i % chunks * chunk, source + (misaligned ? 4 : 0), inside);
  }
  copy_commit();
}

GALA_DEVICE void multiply(const Product& p, int step, float (&d)[4]) {
  const Tile t = tile(step);
  uint32_t b[4];
  load_matrix_x4(b, t.w + lane() % 8 * PITCH + lane() / 8 * 8);
  for (int k = 0; k < 2; ++k) {
    uint32_t a[4];
    const bool down = p.fault == WRONG_MATRIX_ORDER ? lane() / 16 : lane() / 8 % 2;
    const bool right = p.fault == WRONG_MATRIX_ORDER ? lane() / 8 % 2 : lane() / 16;
    load_matrix_x4(a, t.x + (warp() * 16 + lane() % 8 + 8 * down) * PITCH + k * 16 + 8 * right);
    mma(d, a, {b[2 * k], b[2 * k + 1]}, bf16{});
  }
}

GALA_DEVICE void finish(const Product& p, const float (&d)[4]) {
  float* partial = reinterpret_cast<float*>(tile(STAGES - 1).w + COLUMNS * PITCH);  // [ROWS, 2]
  for (int half = 0; half < 2; ++half) {
    const int row = warp() * 16 + lane() / 4 + 8 * half, at = block_x() * ROWS + row;
    const int column = (p.fault == WRONG_FRAGMENT_COLUMN ? (lane() + 1) % 4 : lane() % 4) * 2;
    if (at < p.rows + (p.fault == WRITE_BOUND))
      for (int i = 0; i < 2; ++i) store_global(p.out + at * COLUMNS + column + i, d[2 * half + i]);
    float sum = d[2 * half] + d[2 * half + 1];
    if (p.fault != DIVERGENT_SHUFFLE || lane() < 16) sum += shuffle_xor(sum, 1);
    if (lane() % 2 == 0) partial[row * 2 + lane() % 4 / 2 + (p.fault == SHARED_BOUND ? 2 : 0)] = sum;
  }
  if (p.fault == EARLY_END && thread_index() >= ROWS) return;
  if (p.fault == DIVERGENT_BARRIER && thread_index() < 32) block_barrier();
  block_barrier();
  const int at = block_x() * ROWS + thread_index();
  if (thread_index() < ROWS && at < p.rows) p.sums[at] = partial[2 * thread_index()] + partial[2 * thread_index() + 1];
  if (p.fault == RAW_READ_BOUND && at == p.rows - 1) p.sums[at] += p.sums[at + 1];
}

GALA_KERNEL(64, 1) product(Product p) {
  float d[4] = {};
  const int steps = (p.depth + STEP - 1) / STEP;
  fill(p, 0);
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) fill(p, step + 1);
    else copy_commit();
    if (p.fault == WRONG_WAIT_COUNT) copy_wait<2>();
    else copy_wait<1>();
    if (p.fault != NO_BARRIER_AFTER_WAIT) block_barrier();
    multiply(p, step, d);
    if (p.fault != NO_BARRIER_BEFORE_REFILL) block_barrier();
  }
  finish(p, d);
  if (p.fault == UNWAITED_COPY) fill(p, 0);
}

struct Sum {
  const float* x;  // [values]
  float* out;  // [1], or without atomics a part for each block
  int values;
  bool between_blocks;
};

GALA_KERNEL(32, 1) sum(Sum p) {
  const int i = block_x() * 32 + thread_index();
  float total = i < p.values ? p.x[i] : 0;
  for (int mask = 16; mask; mask /= 2) total += shuffle_xor(total, mask);
  if (lane() == 0) p.between_blocks ? p.out[0] += total : p.out[block_x()] = total;
}

}  // namespace

extern "C" const char* sample_sum(const float* x, float* out, int values, int between_blocks) {
  return error_of(
      [=] { launch("sum", sum, {(values + 31) / 32}, 32, 0, nullptr, Sum{x, out, values, between_blocks != 0}); });
}

extern "C" const char* sample_product(const void* x, const void* w, float* out, float* sums, int rows, int depth,
                                      int fault) {
  return error_of([=] {
    const Product p{static_cast<const bf16*>(x), static_cast<const bf16*>(w), out, sums, rows, depth, fault};
    launch("product", product, {(rows + ROWS - 1) / ROWS}, 64, SHARED_BYTES, nullptr, p);
  });
}

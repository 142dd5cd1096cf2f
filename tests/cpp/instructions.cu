// Kernels of one warp that performs one instruction of the shim; the registers of its lanes are arrays [32, ...].
#include <primitives.cuh>

#include "errors.h"

using namespace gala::cuda;

namespace {

struct LoadMatrix {
  const uint32_t* rows;  // [32, 4]: 8 rows of each of 4 matrices
  uint32_t* registers;  // [32, 4]
  int pitch;  // words from one row to the next in shared memory
  bool transposed;
};

GALA_KERNEL(32, 1) load_matrix(LoadMatrix p) {
  uint32_t* row = shared_memory<uint32_t>() + lane() * p.pitch;
  for (int i = 0; i < 4; ++i) row[i] = p.rows[lane() * 4 + i];
  warp_barrier();
  uint32_t r[4];
  p.transposed ? load_matrix_x4_transposed(r, row) : load_matrix_x4(r, row);
  for (int i = 0; i < 4; ++i) p.registers[lane() * 4 + i] = r[i];
}

struct Strided {
  int bytes, stride;  // of a lane's values, and from a lane's to the next one's, as bytes
};

// One store and one load, of all lanes.
GALA_KERNEL(32, 1) strided(Strided p) {
  char* mine = shared_memory<char>() + lane() * p.stride;
  auto touch = [mine]<class V>(V value) {
    store_shared(reinterpret_cast<V*>(mine), value);
    warp_barrier();
    load_shared(reinterpret_cast<const V*>(mine));
  };
  if (p.bytes == 2) touch(uint16_t{});
  if (p.bytes == 4) touch(uint32_t{});
  if (p.bytes == 8) touch(Vec<uint32_t, 2>{});
  if (p.bytes == 16) touch(Vec<uint32_t, 4>{});
}

struct Multiply {
  const uint32_t *a, *b;  // [32, 4], [32, 2]
  float* d;  // [32, 4]
  int type;  // 0 bf16, 1 f16, 2 tf32
};

GALA_KERNEL(32, 1) multiply(Multiply p) {
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) a[i] = p.a[lane() * 4 + i];
  for (int i = 0; i < 2; ++i) b[i] = p.b[lane() * 2 + i];
  for (int i = 0; i < 4; ++i) d[i] = p.d[lane() * 4 + i];
  if (p.type == 0) mma(d, a, b, bf16{});
  if (p.type == 1) mma(d, a, b, f16{});
  if (p.type == 2) mma_tf32(d, a, b);
  for (int i = 0; i < 4; ++i) p.d[lane() * 4 + i] = d[i];
}

struct Copies {
  const uint32_t* from;  // [32, 4]
  uint32_t* seen;  // [4, 32, 4]: before any wait, then after waits for all but 2, 1 and 0 groups
};

// Three groups of one copy for each lane; lanes from 16 on ask for zeros, at an address that must not be read.
GALA_KERNEL(32, 1) copies(Copies p) {
  uint32_t* mine = shared_memory<uint32_t>() + lane() * 4;
  const bool inside = lane() < 16;
  const uint32_t* from = inside ? p.from + lane() * 4 : nullptr;
  copy_async<4>(mine, from, inside);
  copy_commit();
  copy_async<4>(mine + 1, from + 1, inside);
  copy_commit();
  copy_async<8>(mine + 2, from + 2, inside);
  copy_commit();
  auto look = [&](int when) {
    for (int i = 0; i < 4; ++i) p.seen[(when * 32 + lane()) * 4 + i] = mine[i];
  };
  look(0);
  copy_wait<2>();
  look(1);
  copy_wait<1>();
  look(2);
  copy_wait<0>();
  look(3);
}

struct Exchange {
  const int* values;  // [32]
  int* results;  // [4, 32]: shuffle_xor 5, shuffle_down 3, shuffle from 7, ballot of odd values
};

GALA_KERNEL(32, 1) exchange(Exchange p) {
  const int value = p.values[lane()];
  const int got[] = {shuffle_xor(value, 5), shuffle_down(value, 3), shuffle(value, 7),
                     static_cast<int>(ballot(value % 2 != 0))};
  for (int i = 0; i < 4; ++i) p.results[i * 32 + lane()] = got[i];
}

}  // namespace

extern "C" {

const char* run_load_matrix(const uint32_t* rows, uint32_t* registers, int pitch, int transposed) {
  return error_of([=] {
    launch("load_matrix", load_matrix, {1}, 32, 32 * pitch * 4, nullptr,
           LoadMatrix{rows, registers, pitch, transposed != 0});
  });
}
const char* run_strided(int bytes, int stride) {
  return error_of([=] { launch("strided", strided, {1}, 32, 32 * 32 * 16, nullptr, Strided{bytes, stride}); });
}
const char* run_multiply(const uint32_t* a, const uint32_t* b, float* d, int type) {
  return error_of([=] { launch("multiply", multiply, {1}, 32, 0, nullptr, Multiply{a, b, d, type}); });
}
const char* run_copies(const uint32_t* from, uint32_t* seen) {
  return error_of([=] { launch("copies", copies, {1}, 32, 32 * 16, nullptr, Copies{from, seen}); });
}
const char* run_exchange(const int* values, int* results) {
  return error_of([=] { launch("exchange", exchange, {1}, 32, 0, nullptr, Exchange{values, results}); });
}

void widen_halves(const uint16_t* from, float* to, int count, int is_bf16) {
  for (int i = 0; i < count; ++i) to[i] = is_bf16 ? to_float(bf16{from[i]}) : to_float(f16{from[i]});
}
// Element i of bf16s, f16s and tf32s is value i rounded; of tanhs its approximate tanh.
void round_values(const float* values, uint16_t* bf16s, uint16_t* f16s, uint32_t* tf32s, float* tanhs, int count) {
  for (int i = 0; i < count; ++i) {
    bf16s[i] = from_float<bf16>(values[i]).bits;
    f16s[i] = from_float<f16>(values[i]).bits;
    tf32s[i] = round_tf32(values[i]);
    tanhs[i] = tanh_approx(values[i]);
  }
}
uint32_t signs_of_bytes(uint32_t low, uint32_t high, int index) { return byte_signs(low, high, index); }
uint32_t high_product(uint32_t a, uint32_t b) { return multiply_high(a, b); }
}

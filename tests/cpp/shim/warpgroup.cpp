#include "warpgroup.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "memory.h"
#include "running.h"
#include "shared.h"

namespace gala::shim {
namespace {

constexpr int DEPTH = 16;

struct Product {
  float* d;
  const uint32_t* a;
  uint32_t a_then[4];
  uint64_t b;
  int n;
  Operand type;
  bool changed() const { return a[0] != a_then[0] || a[1] != a_then[1] || a[2] != a_then[2] || a[3] != a_then[3]; }
};

struct Accumulator {
  float* d;
  std::vector<float> values;
};

struct Products {  // of a lane
  bool begun = false;
  size_t committed = 0;
  std::vector<Product> issued;
  std::vector<Accumulator> accumulators;

  float* values(float* d) {
    for (Accumulator& one : accumulators)
      if (one.d == d) return one.values.data();
    return nullptr;
  }
};

Products& own() {
  if (!kept().has_value()) kept() = Products{};
  return std::any_cast<Products&>(kept());
}

// Byte `byte` of line `line` of a tile of 16 columns: 8 lines of 128 bytes a group. Addresses are swizzled, not places
// in the tile.
const char* tile_at(uint64_t b, int line, int byte) {
  const uint64_t start = (b & 0x3FFF) << 4, stride = (b >> 32 & 0x3FFF) << 4;
  const uint64_t place =
      start + static_cast<uint64_t>(line / 8) * stride + static_cast<uint64_t>(line % 8 * 128 + byte);
  return at_address(place ^ (place >> 7 & 7) << 4);
}

float number(uint16_t bits, Operand type) {
  if (bits == POISON_HALF) fail("multiplies what nothing was written to");
  return type == Operand::bf16 ? from_bf16(bits) : from_f16(bits);
}

// No ordinary store may have written what the async proxy reads, unless a fence followed.
void check_operand(uint64_t b, int lines) {
  for (int line = 0; line < lines; ++line)
    for (int byte = 0; byte < 2 * DEPTH; byte += 16) {
      const char* at = tile_at(b, line, byte);
      check_shared(at, 16, 16, self().site);
      const std::string wrong = why_not_async(at, 16);
      if (!wrong.empty()) fail("multiplies a tile, " + wrong + ",");
    }
}

void perform(Products* const (&lanes)[WARP], size_t index) {
  const Product& first = lanes[0]->issued[index];
  double a[16][DEPTH];
  for (int lane = 0; lane < WARP; ++lane) {
    const Product& mine = lanes[lane]->issued[index];
    if (mine.changed()) fail("waits for a product whose left operand was changed since;");
    for (int i = 0; i < 4; ++i)
      for (int h = 0; h < 2; ++h)
        a[lane / 4 + i % 2 * 8][lane % 4 * 2 + h + i / 2 * 8] =
            number(static_cast<uint16_t>(mine.a[i] >> 16 * h), mine.type);
  }
  check_operand(first.b, 2 * first.n);
  for (int column = 0; column < 2 * first.n; ++column) {
    double b[DEPTH];
    for (int k = 0; k < DEPTH; ++k) {
      const char* at = tile_at(first.b, column, 2 * k);
      uint16_t bits;
      std::memcpy(&bits, at, sizeof bits);
      b[k] = number(bits, first.type);
    }
    for (int row = 0; row < 16; ++row) {
      double sum = 0;
      for (int k = 0; k < DEPTH; ++k) sum += a[row][k] * b[k];
      Products& to = *lanes[row % 8 * 4 + column % 8 / 2];
      float& d = to.values(to.issued[index].d)[column / 8 * 4 + row / 8 * 2 + column % 2];
      d = truncated(d + sum);
    }
  }
}

void perform_all(void** mine) {
  Products* lanes[WARP];
  for (int i = 0; i < WARP; ++i) lanes[i] = static_cast<Products*>(mine[i]);
  for (size_t i = 0; i < lanes[0]->committed; ++i) perform(lanes, i);
}

}  // namespace

uint64_t descriptor(const void* shared, uint64_t leading_stride, uint64_t stride, uint64_t swizzle) {
  const uint64_t start = shared_address(shared) & 0x3FFFF;
  return swizzle << 62 | stride >> 4 << 32 | leading_stride >> 4 << 16 | start >> 4;
}

void begin_products(Site site) {
  meet_warp("products_begin", false, site);
  own().begun = true;
}

void issue_product(float* d, int n, const uint32_t* a, uint64_t b, Operand type, Site site) {
  meet_warp("multiply_tile", false, site);
  Products& mine = own();
  if (!mine.begun) fail("multiplies without having begun a group of products");
  if (b >> 62 != SWIZZLE_128) fail("multiplies a tile that is not swizzled by 128 bytes");
  if ((b & 0x3FFF) << 4 & 0x380) fail("multiplies a tile that is not aligned to 1024 bytes");
  if (position.thread % WARP == 0) check_operand(b, 2 * n);
  if (!mine.values(d)) {
    mine.accumulators.push_back({d, {d, d + n}});
    std::fill(d, d + n, std::bit_cast<float>(POISON));
  }
  mine.issued.push_back({d, a, {a[0], a[1], a[2], a[3]}, b, n, type});
}

void commit_products(Site site) {
  meet_warp("products_commit", false, site);
  own().begun = false;
  own().committed = own().issued.size();
}

void wait_products(Site site) {
  Products& mine = own();
  meet_warp("products_wait", false, site, &mine, perform_all);
  if (mine.committed < mine.issued.size()) fail("waits for products that are not committed");
  for (const Accumulator& one : mine.accumulators) std::copy(one.values.begin(), one.values.end(), one.d);
  mine = {};
}

}  // namespace gala::shim

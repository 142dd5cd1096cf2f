// wgmma with the left operand in registers and the right one in shared memory (PTX ISA 8.5, section 9.7.14.5): a warp's
// 16 rows of it, as each of the warpgroup's four warps has its own.
#pragma once

#include <cstdint>

#include "scheduler.h"
#include "warp.h"

namespace gala::shim {

constexpr uint64_t SWIZZLE_128 = 1;

// Of a tile at `shared`, as the instruction's descriptor has it: strides in bytes, `swizzle` SWIZZLE_128.
uint64_t descriptor(const void* shared, uint64_t leading_stride, uint64_t stride, uint64_t swizzle);

// From the issue on d holds poison and a must not change; the wait for the group performs it.
void issue_product(float* d, int n, const uint32_t* a, uint64_t b, Operand type, Site site);
void begin_products(Site site);
void commit_products(Site site);
void wait_products(Site site);

}  // namespace gala::shim

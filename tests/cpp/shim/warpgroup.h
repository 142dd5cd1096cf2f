// wgmma with the left operand in registers and the right one in shared memory (PTX ISA 8.5, section 9.7.14.5). Each of
// the warpgroup's four warps computes 16 rows of the product by itself.
#pragma once

#include <cstdint>

#include "scheduler.h"
#include "warp.h"

namespace gala::shim {

constexpr uint64_t SWIZZLE_128 = 1;

// The descriptor of a tile at `shared`; strides are in bytes, `swizzle` is SWIZZLE_128.
uint64_t descriptor(const void* shared, uint64_t leading_stride, uint64_t stride, uint64_t swizzle);

// Queues a product, which the wait for its group performs. Until then d holds poison, and a must not change.
void issue_product(float* d, int n, const uint32_t* a, uint64_t b, Operand type, Site site);
void begin_products(Site site);
void commit_products(Site site);
void wait_products(Site site);

}  // namespace gala::shim

// A block's shared memory as the hardware sees it: where it begins, who wrote what of it last, and which banks a warp
// needs at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "scheduler.h"

namespace gala::shim {

// Where dynamic shared memory that is declared so aligned begins. Its address is the same in all blocks of a launch,
// and an odd multiple of the alignment: it is aligned to no more than it asks for.
char* shared_memory(uint32_t alignment);
uint32_t shared_address(const void* shared);
char* at_address(uint64_t address);  // what of the own block's lies there

// An ordinary load or store: checked, counted, and of a store remembered who did it.
void read_shared(const void* address, size_t bytes, Site site);
void write_shared(void* address, size_t bytes, Site site);
void write_peer(void* address, size_t bytes);  // of any block's, not counted

// Bulk copies and products of a warpgroup access shared memory through the async proxy. What a thread has written by
// ordinary stores is there for them after its fence.proxy.async, which this is.
void fence_async();
// "" where the async proxy may access these bytes of any block, else which one no fence has followed: "byte 4 of which
// thread 3 wrote without fence.proxy.async since". The hardware's model is content with a fence of another thread that
// comes later; what is asked for here, a fence of the thread that wrote, is what CUDA's own libraries do.
std::string why_not_async(const void* shared, size_t bytes);

// ---- bank conflicts, where a test asks for them

void count_banks(bool on);  // and forgets what was counted
// A line "kernel, file:line, accesses, conflicts" for each place, tabs between: how often a warp accessed shared
// memory, and how many more turns its banks took for that than without any conflict.
std::string counted_banks();
// One access of a warp, lane i's at the shared address i of the 32 where bit i of `lanes` is set.
void count_access(const uint32_t* addresses, uint32_t lanes, size_t bytes, Site site);
void count_lane(const void* shared, size_t bytes, Site site);  // one lane's part of such an access
void end_counts();  // of a cluster, whose threads have ended

}  // namespace gala::shim

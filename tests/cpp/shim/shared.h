// A block's shared memory as the hardware sees it: where it begins, which thread wrote which byte, and which banks a
// warp uses at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "scheduler.h"

namespace gala::shim {

// The beginning of dynamic shared memory that is declared with this alignment. Its address is the same in all blocks of
// a launch, and an odd multiple of the alignment, so that it is aligned to no more than was asked for.
char* shared_memory(uint32_t alignment);
uint32_t shared_address(const void* shared);
char* at_address(uint64_t address);  // in the running thread's block

// An ordinary load or store: it is checked and counted, and the writer is remembered.
void read_shared(const void* address, size_t bytes, Site site);
void write_shared(void* address, size_t bytes, Site site);
void write_peer(void* address, size_t bytes);  // to any block of the cluster; not counted

// fence.proxy.async. Bulk copies and products of a warpgroup access shared memory through the async proxy: they see
// what a thread has written by ordinary stores only after its fence.
void fence_async();
// "" where the async proxy may access these bytes of any block, else which byte was written without a fence since:
// "byte 4 of which thread 3 wrote without fence.proxy.async since". The hardware's model would accept a later fence of
// another thread; here the thread that wrote has to do it, as in CUDA's own libraries.
std::string why_not_async(const void* shared, size_t bytes);

// ---- bank conflicts, which are counted where a test asks for it

void count_banks(bool on);  // forgets earlier counts
// One line for each place, "kernel, file:line, accesses, conflicts" with tabs between: how often a warp accessed shared
// memory there, and how many turns more the banks took for that than without conflicts.
std::string counted_banks();
// One access of a warp: lane i accesses addresses[i] where bit i of `lanes` is set.
void count_access(const uint32_t* addresses, uint32_t lanes, size_t bytes, Site site);
void count_lane(const void* shared, size_t bytes, Site site);  // one lane's part of such an access
void end_counts();  // to be called when the threads of a cluster have ended

}  // namespace gala::shim

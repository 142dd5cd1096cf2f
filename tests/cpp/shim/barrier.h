// Barriers in shared memory that count arrivals and bytes, and the bulk copies that complete on them (PTX ISA 8.5,
// sections 9.7.13.15 and 9.7.9.25).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "scheduler.h"

namespace gala::shim {

struct Phases {  // the part of a barrier that lies in shared memory
  uint64_t arrivals : 20;  // that each phase waits for
  uint64_t pending : 20;
  uint64_t parity : 1;  // of the current phase
  int64_t bytes : 23;  // expected minus arrived
};
static_assert(sizeof(Phases) == 8);

void init(Phases*, int arrivals, Site site);
void publish();  // fence.mbarrier_init: other blocks and copies may use the barriers that this thread has made
// Arrives at the barrier of block `rank` and makes it expect so many bytes more. With `writes`, memory accesses before
// the arrival come before those after a wait.
void arrive(Phases*, int rank, int bytes, bool writes, Site site);
void wait(Phases*, int parity, bool writes, Site site);

// Queues a bulk copy. Until it lands at a later time, the destination in block `rank` holds poison.
void copy_bulk(void* shared, const void* global, int bytes, Phases*, int rank, Site site);

// To be called when all threads of the cluster have ended: "", or which barrier still waits for bytes.
std::string why_unfinished();

}  // namespace gala::shim

// Barriers in shared memory that count arrivals and bytes, and the bulk copies that complete on them (PTX ISA 8.5,
// sections 9.7.13.15 and 9.7.9.25).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "scheduler.h"

namespace gala::shim {

struct Phases {  // what of a barrier lies in shared memory
  uint64_t arrivals : 20;  // of each phase
  uint64_t pending : 20;
  uint64_t parity : 1;  // of the phase
  int64_t bytes : 23;  // expected less come
};
static_assert(sizeof(Phases) == 8);

void init(Phases*, int arrivals, Site site);
void publish();  // fence.mbarrier_init: what the running thread has made so far is there for other blocks and for
                 // copies
// At the barrier of block `rank`, which expects so many bytes more. With `writes` it orders memory accesses before the
// arrival and after a wait.
void arrive(Phases*, int rank, int bytes, bool writes, Site site);
void wait(Phases*, int parity, bool writes, Site site);

// Until it lands, late, the destination in block `rank` holds poison.
void copy_bulk(void* shared, const void* global, int bytes, Phases*, int rank, Site site);

// "" where no barrier of the cluster, whose threads have ended, still waits for bytes.
std::string why_unfinished();

}  // namespace gala::shim

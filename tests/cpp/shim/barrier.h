// Barriers in shared memory that count arrivals and bytes, and the bulk copies that complete on them (PTX ISA 8.5,
// sections 9.7.13.15 and 9.7.9.25).
#pragma once

#include <cstddef>
#include <cstdint>

#include "scheduler.h"

namespace gala::shim {

struct Phases {  // what of a barrier lies in shared memory
  int16_t arrivals;  // of each phase
  int16_t pending;
  int32_t bytes;  // expected less come: twice that, plus the parity of the phase
};

void init(Phases*, int arrivals, Site site);
// At the barrier of block `rank`, which expects so many bytes more. With `writes` it orders memory accesses before the
// arrival and after a wait.
void arrive(Phases*, int rank, int bytes, bool writes, Site site);
void wait(Phases*, int parity, bool writes, Site site);

// Until it lands, late, the destination in block `rank` holds poison.
void copy_bulk(void* shared, const void* global, int bytes, Phases*, int rank, Site site);

}  // namespace gala::shim

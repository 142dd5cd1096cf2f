#include "barrier.h"

#include <cstring>

#include "memory.h"

namespace gala::shim {
namespace {

bool made(const Phases* barrier) { return !poisoned(barrier, sizeof *barrier); }

int parity(const Phases& barrier) { return barrier.bytes & 1; }

void end_if_complete(Phases& barrier) {
  if (barrier.pending > 0 || barrier.bytes / 2 != 0) return;
  barrier.pending = barrier.arrivals;
  barrier.bytes ^= 1;
  wake(&barrier);
}

void land(const Flight& flight) {
  auto* barrier = static_cast<Phases*>(flight.barrier);
  if (has_ended(flight.rank))
    return stop("a bulk copy lands in block " + std::to_string(flight.rank) + ", which has ended");
  if (!made(barrier)) return stop("a bulk copy lands on a barrier that is not made");
  std::memcpy(flight.to, flight.from, static_cast<size_t>(flight.bytes));
  barrier->bytes -= 2 * flight.bytes;
  release_to(barrier);
  end_if_complete(*barrier);
}

}  // namespace

void init(Phases* barrier, int arrivals, Site site) {
  check_shared(barrier, sizeof *barrier, sizeof *barrier, site);
  *barrier = {static_cast<int16_t>(arrivals), static_cast<int16_t>(arrivals), 0};
}

void arrive(Phases* own, int rank, int bytes, bool writes, Site site) {
  auto* barrier = reinterpret_cast<Phases*>(in_peer(own, rank, sizeof *own, site));
  if (!made(barrier)) fail("arrives at a barrier that is not made");
  if (barrier->pending < 1) fail("arrives once more than the phase of a barrier awaits");
  barrier->bytes += 2 * bytes;
  --barrier->pending;
  if (writes) release_to(&barrier->pending);
  end_if_complete(*barrier);
}

void wait(Phases* barrier, int of, bool writes, Site site) {
  check_shared(barrier, sizeof *barrier, sizeof *barrier, site);
  if (!made(barrier)) fail("waits at a barrier that is not made");
  while (parity(*barrier) == of) park(barrier, site);
  acquire_from(barrier);  // what copies brought
  if (writes) acquire_from(&barrier->pending);
}

void copy_bulk(void* shared, const void* global, int bytes, Phases* own, int rank, Site site) {
  constexpr size_t unit = 16;
  const auto size = static_cast<size_t>(bytes);
  check_shared(shared, size, unit, site);
  check_shared(own, sizeof *own, sizeof *own, site);
  check_global(global, size, unit, false, site);
  if (bytes <= 0 || size % unit) fail("copies " + std::to_string(bytes) + " bytes, not a multiple of 16,");
  void* to = in_block(shared, rank);
  poison(to, size);
  later({land, to, global, bytes, in_block(own, rank), rank});
}

}  // namespace gala::shim

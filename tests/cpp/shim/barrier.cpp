#include "barrier.h"

#include <cstring>

#include "memory.h"
#include "running.h"
#include "shared.h"

namespace gala::shim {
namespace {

constexpr int MOST = (1 << 20) - 1;  // arrivals of a phase, bytes that it waits for, and bytes that came too early

MadeBarrier* made(const Phases* barrier) {
  for (MadeBarrier& one : running->barriers)
    if (one.at == barrier) return &one;
  return nullptr;
}

// Where thread synchronisation orders what follows after what came before an arrival.
void* order_of(Phases* barrier) { return reinterpret_cast<char*>(barrier) + sizeof *barrier / 2; }

std::string number(int64_t count) { return std::to_string(count); }

// "" or what is wrong with the bytes that the phase awaits.
std::string why_not_bytes(const Phases& barrier, int64_t bytes) {
  if (bytes < -MOST || bytes > MOST)
    return "leaves a barrier waiting for " + number(bytes) + " bytes, expected -" + number(MOST) + " to " +
           number(MOST);
  if (barrier.pending == 0 && bytes < 0) return "ends a phase that was to have " + number(-bytes) + " bytes less";
  return "";
}

void end_if_complete(Phases& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.arrivals;
  barrier.parity ^= 1;
  wake(&barrier);
}

void land(const Flight& flight) {
  auto* barrier = static_cast<Phases*>(flight.barrier);
  if (has_ended(flight.rank))
    return stop("a bulk copy lands in block " + std::to_string(flight.rank) + ", which has ended");
  const auto size = static_cast<size_t>(flight.bytes);
  const std::string wrong = why_not_bytes(*barrier, int64_t{barrier->bytes} - flight.bytes);
  if (!wrong.empty()) return stop("a bulk copy " + wrong);
  const std::string written = why_not_async(flight.to, size);
  if (!written.empty()) return stop("a bulk copy lands on bytes, " + written);
  std::memcpy(flight.to, flight.from, size);
  barrier->bytes -= flight.bytes;
  release_to(barrier);
  end_if_complete(*barrier);
}

}  // namespace

void init(Phases* barrier, int arrivals, Site site) {
  check_shared(barrier, sizeof *barrier, sizeof *barrier, site);
  if (arrivals < 1 || arrivals > MOST)
    fail("makes a barrier of " + number(arrivals) + " arrivals, expected 1 to " + number(MOST) + ",");
  if (made(barrier)) fail("makes a barrier where there is one");
  if (running->barriers.size() == BARRIERS) fail("makes more barriers than the shim can hold");
  running->barriers.push_back({barrier, own_index(), false});
  *barrier = {static_cast<uint64_t>(arrivals), static_cast<uint64_t>(arrivals), 0, 0};
}

void publish() {
  for (MadeBarrier& one : running->barriers)
    if (one.thread == own_index()) one.published = true;
}

void arrive(Phases* own, int rank, int bytes, bool writes, Site site) {
  auto* barrier = reinterpret_cast<Phases*>(in_peer(own, rank, sizeof *own, site));
  const MadeBarrier* known = made(barrier);
  if (!known) fail("arrives at a barrier that is not made");
  if (rank != position.rank && !known->published) fail("arrives at another block's barrier that is not published");
  if (barrier->pending < 1) fail("arrives once more than the phase of a barrier awaits");
  if (bytes < 0 || bytes > MOST) fail("expects " + number(bytes) + " bytes, not 0 to " + number(MOST) + ",");
  const int64_t awaited = int64_t{barrier->bytes} + bytes;
  --barrier->pending;
  const std::string wrong = why_not_bytes(*barrier, awaited);
  if (!wrong.empty()) fail(wrong);
  barrier->bytes = awaited;
  if (writes) release_to(order_of(barrier));
  end_if_complete(*barrier);
}

void wait(Phases* barrier, int of, bool writes, Site site) {
  check_shared(barrier, sizeof *barrier, sizeof *barrier, site);
  if (!made(barrier)) fail("waits at a barrier that is not made");
  if (of != 0 && of != 1) fail("waits for a phase of parity " + number(of) + ", expected 0 or 1,");
  while (static_cast<int>(barrier->parity) == of) park(barrier, site);
  acquire_from(barrier);  // what copies brought
  if (writes) acquire_from(order_of(barrier));
}

void copy_bulk(void* shared, const void* global, int bytes, Phases* own, int rank, Site site) {
  constexpr size_t unit = 16;
  const auto size = static_cast<size_t>(bytes);
  check_shared(own, sizeof *own, sizeof *own, site);
  if (bytes <= 0 || bytes > MOST || size % unit)
    fail("copies " + number(bytes) + " bytes, expected a multiple of 16 up to " + number(MOST) + ",");
  check_shared(shared, size, unit, site);
  check_global(global, size, unit, false, site);
  void *to = in_block(shared, rank), *barrier = in_block(own, rank);
  const MadeBarrier* known = made(static_cast<Phases*>(barrier));
  if (!known || !known->published) fail("copies to a barrier that is not made and published");
  const std::string wrong = why_not_async(to, size);
  if (!wrong.empty()) fail("copies over bytes, " + wrong + ",");
  poison(to, size);
  later({land, to, global, bytes, barrier, rank});
}

std::string why_unfinished() {
  for (const MadeBarrier& one : running->barriers) {
    const int64_t bytes = static_cast<Phases*>(one.at)->bytes;
    if (bytes != 0) return "ends while a barrier waits for " + number(bytes) + " bytes more";
  }
  return "";
}

}  // namespace gala::shim

#include <algorithm>
#include <string>

#include "memory.h"
#include "running.h"

#if defined(GALA_SHIM_RACES)
#include <sanitizer/tsan_interface.h>
#endif

namespace gala::shim {

int own_index() { return position.rank * position.threads + position.thread; }

Thread& self() { return running->threads[static_cast<size_t>(own_index())]; }

void leave() { self().fiber->leave_for(launched->host); }

std::string text(Site site) {
  const std::string file = site.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line());
}

namespace {

void meet(Team& team, const char* what, bool barrier, Site site, void* mine, void (*together)(void**)) {
  self().site = site;
  if (team.arrived && (team.what != what || team.site.line() != site.line()))
    fail("is not where others of its " + std::string(team.name) + " wait, at " + team.what + ", " + text(team.site) +
         ", but at " + what + ",");
  team.what = what;
  team.site = site;
  running->mine[static_cast<size_t>(own_index())] = mine;
  char* order = &team.order[team.odd];
  if (barrier) release_to(order);
  if (++team.arrived == team.size) {
    if (together) together(&running->mine[static_cast<size_t>(team.first)]);
    team.arrived = 0;
    if (barrier) team.odd = !team.odd;
    for (int t = 0; t < team.size; ++t) running->ready.push_back(team.first + t);
  }
  leave();
  if (barrier) acquire_from(order);
}

}  // namespace

#if defined(GALA_SHIM_RACES)
void release_to(void* address) { __tsan_release(address); }
void acquire_from(void* address) { __tsan_acquire(address); }
#else
void release_to(void*) {}
void acquire_from(void*) {}
#endif

void fail(const std::string& what) {
  launched->failure = "thread " + std::to_string(position.thread) + " " + what + " at " + text(self().site) + " in " +
                      self().site.function_name();
  leave();
  __builtin_unreachable();
}

void stop(const std::string& what) { launched->failure = what; }

void check_global(const void* address, size_t bytes, size_t alignment, bool write, Site site) {
  self().site = site;
  const std::string wrong = why_not_global(address, bytes, alignment, write);
  if (!wrong.empty()) fail("accesses " + wrong);
}

void check_aligned(const void* address, size_t alignment, Site site) {
  self().site = site;
  if (reinterpret_cast<uintptr_t>(address) % alignment)
    fail("copies zeros from an address that is not aligned to " + std::to_string(alignment) + " bytes");
}

void check_shared(const void* address, size_t bytes, size_t alignment, Site site) {
  self().site = site;
  if (reinterpret_cast<uintptr_t>(address) % alignment)
    fail("accesses " + std::to_string(bytes) + " bytes not aligned to " + std::to_string(alignment));
  const auto offset = static_cast<const char*>(address) - position.shared;
  if (offset < 0 || static_cast<size_t>(offset) + bytes > position.shared_bytes)
    fail("accesses " + std::to_string(bytes) + " bytes at " + std::to_string(offset) + " of " +
         std::to_string(position.shared_bytes) + " bytes of shared memory");
}

void meet_block(Site site) {
  meet(running->blocks[static_cast<size_t>(position.rank)], "block_barrier", true, site, nullptr, nullptr);
}

void meet_cluster(Site site) { meet(running->all, "cluster_barrier", true, site, nullptr, nullptr); }

void meet_warp(const char* what, bool barrier, Site site, void* mine, void (*together)(void**)) {
  meet(running->warps[static_cast<size_t>(own_index() / WARP)], what, barrier, site, mine, together);
}

bool has_ended(int rank) {
  const auto first = running->threads.begin() + rank * position.threads;
  return std::all_of(first, first + position.threads, [](const Thread& t) { return t.ended; });
}

char* in_block(const void* shared, int rank) {
  return running->positions[static_cast<size_t>(rank)].shared + (static_cast<const char*>(shared) - position.shared);
}

char* in_peer(const void* shared, int rank, size_t bytes, Site site) {
  check_shared(shared, bytes, bytes, site);
  if (rank < 0 || rank >= position.cluster)
    fail("names block " + std::to_string(rank) + " of a cluster of " + std::to_string(position.cluster));
  if (has_ended(rank)) fail("accesses shared memory of block " + std::to_string(rank) + ", which has ended,");
  return in_block(shared, rank);
}

void park(const void* on, Site site) {
  self().site = site;
  running->parked.push_back({on, own_index()});
  leave();
}

void wake(const void* on) {
  std::erase_if(running->parked, [on](const auto& parked) {
    if (parked.first == on) running->ready.push_back(parked.second);
    return parked.first == on;
  });
}

void later(const Flight& flight) {
  if (running->flights.size() == FLIGHTS) fail("issues more bulk copies than the shim can hold");
  running->flights.push_back(flight);
}

std::any& kept() { return self().kept; }

void issue(const Copy& copy) {
  Thread& me = self();
  if (me.issued == me.performed + COPIES) fail("issues more asynchronous copies than the shim can hold");
  me.copies[me.issued++ % COPIES] = {copy, me.group};
}

void commit() { ++self().group; }

bool next_due(int pending_groups, Copy& copy) {
  Thread& me = self();
  const Issued& next = me.copies[me.performed % COPIES];
  if (me.performed == me.issued || next.group >= me.group - pending_groups) return false;
  ++me.performed;
  copy = next.copy;
  return true;
}

}  // namespace gala::shim

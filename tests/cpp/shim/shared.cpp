#include "shared.h"

#include <algorithm>

#include "running.h"

namespace gala::shim {

char* shared_memory(uint32_t alignment) {
  constexpr uint32_t system = 1024;  // what of shared memory the hardware takes for itself, at most
  if (!launched->shared_alignment) {
    std::mt19937_64 random(~device.seed);  // of its own: the order of threads does not depend on it
    launched->shared_alignment = alignment;
    launched->shared_base = alignment * ((system / alignment | 1) + 2 * static_cast<uint32_t>(random() % 4));
  }
  if (launched->shared_alignment != alignment)
    fail("names shared memory aligned to " + std::to_string(alignment) + " that another name aligns to " +
         std::to_string(launched->shared_alignment) + "; last seen");
  return position.shared;
}

uint32_t shared_address(const void* shared) {
  return launched->shared_base + static_cast<uint32_t>(static_cast<const char*>(shared) - position.shared);
}

char* at_address(uint64_t address) { return position.shared + (static_cast<int64_t>(address) - launched->shared_base); }

namespace {

// The writers of the bytes from `shared` on, in whichever block of the cluster they lie.
Writer* writers(const void* shared) {
  const auto* at = static_cast<const char*>(shared);
  for (size_t rank = 0; rank < running->positions.size(); ++rank) {
    const Position& block = running->positions[rank];
    if (at >= block.shared && at < block.shared + block.shared_bytes)
      return &running->writers[rank][static_cast<size_t>(at - block.shared)];
  }
  return nullptr;
}

}  // namespace

void read_shared(const void* address, size_t bytes, Site site) {
  check_shared(address, bytes, bytes, site);
  count_lane(address, bytes, site);
}

void write_shared(void* address, size_t bytes, Site site) {
  read_shared(address, bytes, site);
  write_peer(address, bytes);
}

void write_peer(void* address, size_t bytes) {
  std::fill_n(writers(address), bytes, static_cast<Writer>(own_index() + 1));
}

void fence_async() {
  for (auto& block : running->writers)
    std::replace(block.begin(), block.end(), static_cast<Writer>(own_index() + 1), Writer{0});
}

std::string why_not_async(const void* shared, size_t bytes) {
  const Writer* from = writers(shared);
  const Writer* found = std::find_if(from, from + bytes, [](Writer w) { return w != 0; });
  if (found == from + bytes) return "";
  return "byte " + std::to_string(found - from) + " of which thread " +
         std::to_string((*found - 1) % position.threads) + " wrote without fence.proxy.async since";
}

}  // namespace gala::shim

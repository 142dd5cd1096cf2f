#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>

namespace gala::shim {
namespace {

constexpr size_t TOUCHED_WHOLE = size_t{64} << 20;

struct Buffer {
  std::unique_ptr<Pages> pages;
  char* begin;
  size_t bytes;
  bool writable = true;
};

std::map<const char*, Buffer>& buffers() {
  static std::map<const char*, Buffer> by_begin;
  return by_begin;
}

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

const Buffer* holder(const char* address, size_t bytes) {
  auto next = buffers().upper_bound(address);
  if (next == buffers().begin()) return nullptr;
  const Buffer& before = std::prev(next)->second;
  return address + bytes <= before.begin + before.bytes ? &before : nullptr;
}

}  // namespace

Pages::Pages(size_t bytes) {
  const size_t whole = (bytes + page() - 1) / page() * page();
  void* pages = mmap(nullptr, whole + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::runtime_error("no address space for " + std::to_string(bytes) + " bytes");
  first = static_cast<char*>(pages) + page();
  last = first + whole;
  if (whole && mprotect(first, whole, PROT_READ | PROT_WRITE)) throw std::runtime_error("mprotect failed");
}

Pages::~Pages() { munmap(first - page(), static_cast<size_t>(last - first) + 2 * page()); }

void Pages::renew() {
  const auto bytes = static_cast<size_t>(last - first);
  munmap(first, bytes);
  mmap(first, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

void poison(void* begin, size_t bytes) {
  auto* to = static_cast<char*>(begin);
  for (size_t i = 0; i < bytes; ++i) to[i] = static_cast<char>((reinterpret_cast<uintptr_t>(to + i) & 1) ? 0xFF : 0xDB);
}

bool poisoned(const void* begin, size_t bytes) {
  auto* from = static_cast<const unsigned char*>(begin);
  for (size_t i = 0; i < bytes; ++i)
    if (from[i] != ((reinterpret_cast<uintptr_t>(from + i) & 1) ? 0xFF : 0xDB)) return false;
  return true;
}

void* allocate(size_t bytes, size_t modulus, size_t residue) {
  auto pages = std::make_unique<Pages>(bytes + modulus);
  const auto latest = reinterpret_cast<uintptr_t>(pages->end()) - bytes;
  char* begin = reinterpret_cast<char*>(latest - (latest - residue) % modulus);
  if (bytes <= TOUCHED_WHOLE) poison(pages->begin(), static_cast<size_t>(pages->end() - pages->begin()));
  buffers()[begin] = {std::move(pages), begin, bytes};
  return begin;
}

void make_read_only(void* buffer) {
  Buffer& b = buffers().at(static_cast<char*>(buffer));
  b.writable = false;
  mprotect(b.pages->begin(), static_cast<size_t>(b.pages->end() - b.pages->begin()), PROT_READ);
}

bool intact(void* buffer) {
  const Buffer& b = buffers().at(static_cast<char*>(buffer));
  if (b.bytes > TOUCHED_WHOLE) return true;
  const char *end = b.begin + b.bytes, *first = b.pages->begin(), *last = b.pages->end();
  return poisoned(first, static_cast<size_t>(b.begin - first)) && poisoned(end, static_cast<size_t>(last - end));
}

void release(void* buffer) { buffers().erase(static_cast<char*>(buffer)); }

std::string why_not_global(const void* address, size_t bytes, size_t alignment, bool write) {
  if (reinterpret_cast<uintptr_t>(address) % alignment)
    return std::to_string(bytes) + " bytes not aligned to " + std::to_string(alignment);
  const Buffer* b = holder(static_cast<const char*>(address), bytes);
  if (!b) return "outside device memory, " + whereabouts(address);
  return write && !b->writable ? "a write to memory that is only read" : "";
}

std::string whereabouts(const void* address) {
  auto* at = static_cast<const char*>(address);
  auto next = buffers().upper_bound(at);
  if (next == buffers().begin()) return "before any buffer";
  const Buffer& b = std::prev(next)->second;
  return std::to_string(at - b.begin) + " bytes into a buffer of " + std::to_string(b.bytes) + " bytes";
}

}  // namespace gala::shim

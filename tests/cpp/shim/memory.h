// Device memory between guard pages, and the record of which parts of it kernels may access.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace gala::shim {

// Poison: a bit pattern that is NaN in bfloat16, float16 and float32, and that no computation yields.
constexpr uint16_t POISON_HALF = 0xFFDB;
constexpr uint32_t POISON = 0xFFDBFFDB;

// Whole pages between two pages that fault; they are given back on destruction.
class Pages {
 public:
  explicit Pages(size_t bytes);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  char* begin() const { return first; }
  char* end() const { return last; }
  void renew();  // gives the pages back and allocates them again

 private:
  char *first, *last;
};

void poison(void* begin, size_t bytes);  // 0xDB at even addresses, 0xFF at odd ones
bool poisoned(const void* begin, size_t bytes);

// Makes a buffer of device memory whose address is `residue` modulo `modulus`, and which ends as near to the guard page
// as that permits. It is poisoned, unless it is too large.
void* allocate(size_t bytes, size_t modulus, size_t residue);
void make_read_only(void* buffer);
bool intact(void* buffer);  // whether nothing was written between it and the guard pages
void release(void* buffer);

// "" where the bytes at `address` are device memory and aligned to `alignment`, else what is wrong.
std::string why_not_global(const void* address, size_t bytes, size_t alignment, bool write);
std::string whereabouts(const void* address);  // as in "6 bytes past the end of a buffer of 192 bytes"

}  // namespace gala::shim

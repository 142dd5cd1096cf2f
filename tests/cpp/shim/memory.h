// Memory behind guard pages, and the record of what of it kernels may touch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace gala::shim {

// NaN in bfloat16, float16 and float32, and a bit pattern that no computation yields.
constexpr uint16_t POISON_HALF = 0xFFDB;
constexpr uint32_t POISON = 0xFFDBFFDB;

// Whole pages between two that fault; given back when it goes.
class Pages {
 public:
  explicit Pages(size_t bytes);
  ~Pages();
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  char* begin() const { return first; }
  char* end() const { return last; }
  void renew();  // as if given back and allocated again

 private:
  char *first, *last;
};

void poison(void* begin, size_t bytes);  // bytes from an even address on
bool poisoned(const void* begin, size_t bytes);

// A buffer of device memory whose address is `residue` modulo `modulus` and whose end is as near to the guard page as
// that lets it be. Poisoned where it is not too large to be touched whole.
void* allocate(size_t bytes, size_t modulus, size_t residue);
void make_read_only(void* buffer);
bool intact(void* buffer);  // nothing was written between it and the guard pages
void release(void* buffer);

// "" where device memory holds the `bytes` at `address`, aligned to `alignment`, else what is wrong.
std::string why_not_global(const void* address, size_t bytes, size_t alignment, bool write);
std::string whereabouts(const void* address);  // "6 bytes past the end of a buffer of 192 bytes"

}  // namespace gala::shim

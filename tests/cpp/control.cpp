// The functions of the shim that Python calls: buffers, the device's properties, counts of bank conflicts.
#include <cstdint>
#include <string>

#include "shim/memory.h"
#include "shim/scheduler.h"
#include "shim/shared.h"

extern "C" {

void* shim_allocate(int64_t bytes, int64_t modulus, int64_t residue) {
  return gala::shim::allocate(static_cast<size_t>(bytes), static_cast<size_t>(modulus), static_cast<size_t>(residue));
}
void shim_make_read_only(void* buffer) { gala::shim::make_read_only(buffer); }
int shim_intact(void* buffer) { return gala::shim::intact(buffer); }
void shim_release(void* buffer) { gala::shim::release(buffer); }

void shim_run_blocks(int64_t most) { gala::shim::most_blocks = most; }

void shim_set_device(uint64_t seed, int shared_limit) { gala::shim::device = {seed, shared_limit}; }

void shim_count_banks(int on) { gala::shim::count_banks(on != 0); }
const char* shim_counted_banks() {
  static std::string lines;
  lines = gala::shim::counted_banks();
  return lines.c_str();
}
}

// csrc/cuda/runtime.cuh for the host: a launch runs the kernel before it returns, on the device of scheduler.h.
#pragma once

#include <cstdint>
#include <type_traits>

#include "scheduler.h"

namespace gala::cuda {

struct Grid {
  int64_t x, y = 1, z = 1;
};

template <class P>
void launch(const char* name, void (*kernel)(P), Grid grid, int threads, int shared_bytes,
            [[maybe_unused]] void* stream, const P& params, int cluster = 1) {
  static_assert(std::is_trivially_copyable_v<P> && sizeof(P) <= 4096);
  struct Call {
    void (*kernel)(P);
    const P& params;
  } call{kernel, params};
  shim::launch(
      name, {grid.x, grid.y, grid.z}, threads, shared_bytes,
      [](const void* context) {
        auto& c = *static_cast<const Call*>(context);
        c.kernel(c.params);
      },
      &call, cluster);
}

inline int shared_limit() { return shim::device.shared_limit; }
inline bool is_hopper() { return true; }

}  // namespace gala::cuda

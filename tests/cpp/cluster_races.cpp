// Runs the forward pass in clusters under ThreadSanitizer, which ends the program with an error if there is a race. The
// shim itself is compiled without ThreadSanitizer and linked first, so that its own data are not watched.

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "../../csrc/gala.h"
#include "shim/memory.h"
#include "shim/scheduler.h"

using namespace gala;

namespace {

template <class T>
T* filled(int64_t count, T value) {
  auto* to = static_cast<T*>(shim::allocate(static_cast<size_t>(count) * sizeof(T), 256, 0));
  for (int64_t i = 0; i < count; ++i) to[i] = value;
  return to;
}

void run(const Shape& shape) {
  const auto [n, c, pixels, r] = shape;
  auto weight = [](int64_t count) -> const void* { return filled(count, 0.01f); };
  Problem p{shape, DType::f16, Squash::tanh, true, {}, {}};
  p.weights = {weight(r * c), weight(c * r), weight(r * c), weight(r), weight(c),
               weight(c),     weight(r),     weight(c),     weight(r), weight(1)};
  constexpr uint16_t one = 0x3C00;
  auto map = [&] { return FeatureMap{filled(n * c * pixels, one), c * pixels, 1, c}; };
  const Forward f{map(),
                  map(),
                  map(),
                  filled(n * pixels, 0.0f),
                  filled(n * (pixels + c + r), 0.0f),
                  filled(n * pixels * ((r + 31) / 32), int32_t{0})};
  cuda::forward_in_cluster(p, f, {nullptr, filled(cuda::cluster_workspace(p), char{0}), false});
}

}  // namespace

// cluster_races <images> <channels> <pixels> <reduced> <seed>
int main(int argc, char** argv) {
  auto number = [&](int i) { return i < argc ? std::atoi(argv[i]) : 0; };
  shim::device.seed = static_cast<uint64_t>(number(5));
  shim::device.shared_limit = 227 << 10;
  try {
    run({number(1), number(2), number(3), number(4)});
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

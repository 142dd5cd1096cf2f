// Adds partial results in a fixed order.

#include <cmath>
#include <primitives.cuh>

#include "launchers.h"

namespace gala::cuda {

constexpr int kThreads = 256;

struct SumParams {
  Sum first, second;
  int64_t first_blocks;
};

GALA_KERNEL(kThreads, 4) sum_kernel(SumParams p) {
  const bool is_first = block_x() < p.first_blocks;
  const Sum sum = is_first ? p.first : p.second;
  const int64_t row = (block_x() - (is_first ? 0 : p.first_blocks)) * kThreads + thread_index();
  if (row >= sum.rows) return;
  float total = 0.0f;
  for (int64_t part = 0; part < sum.count; ++part) total += load_global(sum.parts + part * sum.rows + row);
  store_global(sum.to + row, sum.root ? std::sqrt(total) : total);
}

void sum_parts(const Sum& first, const Sum& second, const Execution& execution) {
  const int64_t first_blocks = ceil_div(first.rows, kThreads), blocks = first_blocks + ceil_div(second.rows, kThreads);
  if (blocks == 0) return;
  launch("sum_kernel", sum_kernel, {blocks}, kThreads, 0, execution.stream, SumParams{first, second, first_blocks});
}

}  // namespace gala::cuda

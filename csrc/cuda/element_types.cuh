// Host code that chooses a kernel by x's dtype; f64 has been refused before.
#pragma once

#include <primitives.cuh>

#include "../gala.h"

namespace gala::cuda {

inline int element_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// Calls run<T>() with the type T of x's elements.
template <class Run>
void with_element_type(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::f32: return run.template operator()<float>();
    case DType::bf16: return run.template operator()<bf16>();
    case DType::f16: return run.template operator()<f16>();
    case DType::f64: return;
  }
}

}  // namespace gala::cuda

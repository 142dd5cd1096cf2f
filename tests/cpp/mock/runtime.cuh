// The library's own launches, which then reach mock.cpp; the rest of the shim serves to compile the kernels.
#pragma once

#include "../../../csrc/cuda/runtime.cuh"

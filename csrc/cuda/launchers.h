// Host functions that queue the kernels of one stage; stages.cu calls them in order.
//
// What they pass on to each other is float32, with one row for each image:
//   gates [N, 2, C]    alpha and beta
//   d_gates [N, 2, C]  their gradients
//   g, dg, dp [N, C]   dp is divided by HW already
//   dz [N, R], ds [N, HW]
// Execution::workspace is scratch memory for this one call, of as many bytes as `<name>_scratch` returns.
#pragma once

#include "../gala.h"

namespace gala::cuda {

// How many numbers s, p and z of one image are.
inline int64_t stats_width(const Shape& s) { return s.pixels + s.channels + s.reduced; }

// How many words one pixel's ReLU mask takes.
inline int64_t mask_words(const Shape& s) { return (s.reduced + 31) / 32; }

// The weights as the tensor cores read them: in x's dtype, each row padded with zeros to whole tiles. pack_shrink packs
// v_shrink; pack_local packs its transpose, with v_collapse multiplied in.
int64_t packed_shrink_bytes(const Problem&);
void pack_shrink(const Problem&, void* packed, const Execution&);
int64_t packed_local_bytes(const Problem&);
void pack_local(const Problem&, void* packed, const Execution&);

// gather: s and p into the statistics, and the bits.
int64_t gather_scratch(const Problem&);
void gather(const Problem&, const Forward&, const void* packed_shrink, const Execution&);

// gate: z into the statistics, and the gates.
void gate(const Problem&, void* stats, float* gates, const Execution&);

// The gates and g, computed anew from the saved z.
void expand(const Problem&, const void* stats, float* gates, float* g, const Execution&);

// scale: out and the map.
int64_t scale_scratch(const Problem&, const Forward&);
void scale(const Problem&, const Forward&, const float* gates, const Execution&);

// scale's backward: d_gates, ds, and grad_residual.
int64_t scale_backward_scratch(const Problem&, const Backward&);
void scale_backward(const Problem&, const Backward&, const float* gates, float* d_gates, float* ds, const Execution&);

// gate's backward: dg, dz and dp.
int64_t gate_backward_scratch(const Problem&);
void gate_backward(const Problem&, const void* stats, const float* d_gates, float* dg, float* dz, float* dp,
                   const Execution&);

// The gradients of gate's weights, from all images: w_shrink, w_expand, a, m, b_w_shrink, b_w_expand.
int64_t global_grads_scratch(const Problem&);
void global_grads(const Problem&, const Backward&, const float* g, const float* d_gates, const float* dg,
                  const float* dz, const Execution&);

// gather's backward: grad_x. With a residual it reads grad_residual in place of grad_out.
void grad_x(const Problem&, const Backward&, const void* packed_local, const float* gates, const float* ds,
            const float* dp, const Execution&);

// The gradients of gather's weights, from all images: v_shrink, v_collapse, b_v_shrink, b_v_collapse.
int64_t local_grads_scratch(const Problem&);
void local_grads(const Problem&, const Backward&, const float* ds, const Execution&);

// to [rows] = the sum of parts [count, rows] over the parts, added in order; with `root` its square root.
struct Sum {
  const float* parts;
  float* to;
  int64_t rows, count;
  bool root = false;
};
void sum_parts(const Sum& first, const Sum& second, const Execution&);  // a sum of 0 rows is left out

// Whether the kernels have this squash. Of the switches over squashes, nvcc warns about a missing case in this one
// alone, which is host code.
inline bool is_known(Squash squash) {
  switch (squash) {
    case Squash::tanh:
    case Squash::sigmoid: return true;
  }
  return false;
}

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace gala::cuda

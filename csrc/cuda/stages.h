// The stages as host functions that queue kernels, of some of the images each; launch.cu puts them in order.
//
// In the workspace, float32, one row an image of the whole batch:
//   gates [N, 2, C]    alpha and beta; d_gates their gradients
//   g, dg, dp [N, C]   dp is divided by HW already
//   dz [N, R], ds [N, HW]
// Execution::workspace is each stage's own scratch memory, as many bytes as its `..._scratch` says; the next stage
// may overwrite it.
#pragma once

#include "../gala.h"

namespace gala::cuda {

struct Images {
  int64_t first, count;
};

// Of one image's row of statistics: s, p, z.
inline int64_t stats_width(const Shape& s) { return s.pixels + s.channels + s.reduced; }

inline int64_t mask_words(const Shape& s) { return (s.reduced + 31) / 32; }

// The weights as the tensor cores read them, in x's dtype, padded with zeros to whole tiles.
int64_t packed_shrink_bytes(const Problem&);  // v_shrink
void pack_shrink(const Problem&, void* packed, const Execution&);
int64_t packed_local_bytes(const Problem&);  // v_collapse times the rows of v_shrink
void pack_local(const Problem&, void* packed, const Execution&);

// gather: s and p into the statistics, and the bits.
int64_t gather_scratch(const Problem&, const Forward&, Images);
void gather(const Problem&, const Forward&, Images, const void* packed_shrink, const Execution&);

// gate: z into the statistics, and the gates.
void gate(const Problem&, void* stats, Images, float* gates, const Execution&);

// The gates and g again, from z.
void expand(const Problem&, const void* stats, Images, float* gates, float* g, const Execution&);

// scale: out and the map.
int64_t scale_scratch(const Problem&, const Forward&, Images);
void scale(const Problem&, const Forward&, Images, const float* gates, const Execution&);

// scale's backward: d_gates, ds, and grad_residual.
int64_t scale_backward_scratch(const Problem&, const Backward&, Images);
void scale_backward(const Problem&, const Backward&, Images, const float* gates, float* d_gates, float* ds,
                    const Execution&);

// gate's backward: dg, dz and dp.
int64_t gate_backward_scratch(const Problem&, Images);
void gate_backward(const Problem&, const void* stats, Images, const float* d_gates, float* dg, float* dz, float* dp,
                   const Execution&);

// Its weights' gradients, from all images: w_shrink, w_expand, a, m, b_w_shrink, b_w_expand.
int64_t global_grads_scratch(const Problem&);
void global_grads(const Problem&, const Backward&, const float* g, const float* d_gates, const float* dg,
                  const float* dz, const Execution&);

// gather's backward: grad_x. Of a residual form grad_residual is read, not grad_out.
int64_t grad_x_scratch(const Problem&, const Backward&, Images);
void grad_x(const Problem&, const Backward&, Images, const void* packed_local, const float* gates, const float* ds,
            const float* dp, const Execution&);

// Its weights' gradients, from all images: v_shrink, v_collapse, b_v_shrink, b_v_collapse.
int64_t local_grads_scratch(const Problem&, const Backward&);
void local_grads(const Problem&, const Backward&, const float* ds, const Execution&);

// to [rows] = the sum over parts [count, rows], in order; of `root` its square root.
struct Sum {
  const float* parts;
  float* to;
  int64_t rows, count;
  bool root = false;
};
void sum_parts(const Sum& first, const Sum& second, const Execution&);  // one of no rows is left out

inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace gala::cuda

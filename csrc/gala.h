// The stages of the GALA block, free of torch: shapes, strides and pointers in plain structs.
//
// With the names of Linsley et al. (ICLR 2019): C channels, R the reduced width, HW pixels, N images.
//   gather  x -> p [N, C] pooled mean, s [N, HW] local map, relu_mask: sign pattern of the local hidden layer
//   gate    p -> z [N, R] -> g [N, C];  alpha = a g,  beta = a + m g
//   scale   out = x * squash(alpha + beta * s), with a residual relu(out + residual)
#pragma once

#include <cstdint>

#ifndef GALA_API
#define GALA_API  // what a shared library exports
#endif

namespace gala {

enum class DType { f32, f64, bf16, f16 };
enum class Squash : int64_t { tanh = 0, sigmoid = 1 };  // as gala_cuda/backends/squash.py numbers them

struct Shape {
  int64_t images, channels, pixels, reduced;
};

// A tensor [N, C, HW] by strides in elements. Channels or pixels are adjacent: Problem::channels_last says which.
struct FeatureMap {
  void* data = nullptr;
  int64_t image_stride = 0, channel_stride = 0, pixel_stride = 0;
};

// Contiguous, in the accumulation type (double for f64, else float), where the stages run. Biases may be null.
struct Weights {
  const void* w_shrink;  // [R, C]
  const void* w_expand;  // [C, R]
  const void* v_shrink;  // [R, C]
  const void* v_collapse;  // [R]
  const void* a;  // [C]
  const void* m;  // [C]
  const void* b_w_shrink;  // [R]
  const void* b_w_expand;  // [C]
  const void* b_v_shrink;  // [R]
  const void* b_v_collapse;  // [1]
};

// The gradients of Weights, same shapes and type. All null where no weight needs one.
struct WeightGrads {
  void *w_shrink, *w_expand, *v_shrink, *v_collapse, *a, *m;
  void *b_w_shrink, *b_w_expand, *b_v_shrink, *b_v_collapse;
};

// Runs body(context, task) for each task in [0, tasks), in any order, on up to `threads` threads.
struct Parallel {
  void (*run)(int64_t tasks, void (*body)(void* context, int64_t task), void* context);
  int64_t threads;
};

struct Problem {
  Shape shape;
  DType dtype;  // of every FeatureMap
  Squash squash;
  bool channels_last;  // channels are adjacent (channels_last), else pixels (NCHW)
  Weights weights;
  Parallel parallel;  // of the CPU's stages
};

struct Forward {
  FeatureMap x, residual, out;  // residual.data may be null
  void* map;  // [N, HW] L2 norm of the attention over channels, or null
  void* stats;  // [N, HW + C + R]: s, p, z of each image
  int32_t* relu_mask;  // [N, HW, ceil(R / 32)], or null
};

struct Backward {
  FeatureMap x, grad_out, out;  // out.data is null where no residual was added
  const void* map_factor;  // [N, HW] gradient of the map over the map, 0 where that is 0; or null
  const void* stats;  // as Forward wrote them
  const int32_t* relu_mask;
  FeatureMap grad_x;  // data may be null
  FeatureMap grad_residual;  // with out
  WeightGrads grads;
};

// What stands between the stages where they run one by one, as in the block of the authors' released code: hidden
// layers [N, HW, R], and [N, C] each what the gate makes of p and of d alpha and d beta; all in the accumulation type.
struct Between {
  void *hidden, *grad_hidden;
  const void *alpha, *beta, *dp;
  void *d_alpha, *d_beta;
};

namespace cpu {

GALA_API void forward(const Problem&, const Forward&);
GALA_API void backward(const Problem&, const Backward&);

// The stages of the released code's block. Between gather and scale the caller convolves the hidden layer; the gate is
// its own too. Of the weights they read those of the local path, with their biases; no relu_mask is written or read.
//   gather           hidden = relu(v_shrink x + b_v_shrink); p into the statistics
//   scale            from the next hidden layer, before its ReLU: s = v_collapse . relu(hidden) + b_v_collapse into the
//                    statistics; out; map
//   scale_backward   d_alpha, d_beta, the gradients of that hidden layer, of v_collapse and its bias, and of the
//                    residual; a part of grad_x
//   gather_backward  from gather's hidden layer and the gradient of it: the rest of grad_x, the gradients of v_shrink
//                    and its bias
GALA_API void gather(const Problem&, const Forward&, const Between&);
GALA_API void scale(const Problem&, const Forward&, const Between&);
GALA_API void scale_backward(const Problem&, const Backward&, const Between&);
GALA_API void gather_backward(const Problem&, const Backward&, const Between&);

// The vector instruction set in use: "avx512", "avx2" or "baseline". The environment variable GALA_CPU_ISA lowers it.
GALA_API const char* isa();

}  // namespace cpu

// On NVIDIA GPUs of compute capability 8.0 and newer: pointers are device memory, dtypes f32, bf16 and f16. Work is
// queued on a stream of the current device; nothing waits, nothing is allocated, so that a CUDA graph can capture it.
// Two runs on one GPU give the same bits; GPUs of other models may give others. The first launch of a kernel loads it.
// Errors: std::invalid_argument before anything is launched, for f64, an unknown squash, a size outside of 1 to 2^30,
// 2^31 pixels or more in all, a null or misaligned pointer, and strides that contradict channels_last;
// std::runtime_error with the kernel's name and CUDA's message.
namespace cuda {

struct Execution {
  void* stream;  // a cudaStream_t
  void* workspace;  // device memory, aligned to 256 bytes, of the size below
  bool tf32;  // f32 products take one TF32 product each, else three (tf32x3), as accurate as float32
};

GALA_API int64_t forward_workspace(const Problem&, const Forward&);  // in bytes
GALA_API void forward(const Problem&, const Forward&, const Execution&);
GALA_API int64_t backward_workspace(const Problem&, const Backward&);
GALA_API void backward(const Problem&, const Backward&, const Execution&);

// The forward pass as one kernel that reads x once: a cluster of blocks holds one image in its shared memory. It is for
// few images, on compute capability 9.0. Backward goes on from its results as usual. why_not_in_cluster returns null
// where the kernel takes the problem, else the reason why not.
GALA_API const char* why_not_in_cluster(const Problem&, const Forward&);
GALA_API int64_t cluster_workspace(const Problem&);
GALA_API void forward_in_cluster(const Problem&, const Forward&, const Execution&);

// The architectures with kernels in this build, as "80 86 90a".
GALA_API const char* architectures();

}  // namespace cuda
}  // namespace gala

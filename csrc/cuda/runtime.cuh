// The host's calls of CUDA: kernel launches, and properties of the current device.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstdint>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace gala::cuda {

inline void check(const char* name, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it: left there, it would be reported again after a later call that succeeds
  throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
}

inline int current_device() {
  int device = 0;
  check("cudaGetDevice", cudaGetDevice(&device));
  return device;
}

inline int attribute(cudaDeviceAttr which) {
  int value = 0;
  check("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, which, current_device()));
  return value;
}

// The most dynamic shared memory that a block may ask for on the current device.
inline int shared_limit() { return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

// Whether this build has code for compute_90a and the current device runs it.
inline bool is_hopper() {
  constexpr bool is_compiled = std::string_view(GALA_CUDA_ARCHITECTURES).find("90a") != std::string_view::npos;
  return is_compiled && attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

// Loads the kernel's code and allows it all of the device's shared memory, once for each kernel and device. The limit
// is always the same, so that threads which launch the kernel at the same time do not contradict each other.
inline void prepare(const char* name, const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> prepared;
  const int device = current_device();
  const std::lock_guard lock(mutex);
  if (prepared.count({kernel, device})) return;
  const int limit = shared_limit();
  // while a thread captures a CUDA graph, loading is an error unless it is declared to be no part of the graph
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check(name, cudaThreadExchangeStreamCaptureMode(&mode));
  cudaFuncAttributes loaded;
  cudaError_t error = cudaFuncGetAttributes(&loaded, kernel);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
  check(name, cudaThreadExchangeStreamCaptureMode(&mode));
  check(name, error);
  prepared.insert({kernel, device});
}

// Queues a kernel on a stream. `cluster` blocks that follow each other form a cluster; more than one needs compute
// capability 9.0 or newer.
template <class Params>
void launch(const char* name, void (*kernel)(Params), int64_t blocks, int threads, int shared_bytes, void* stream,
            const Params& params, int cluster = 1) {
  if (blocks > INT_MAX)
    throw std::runtime_error(std::string(name) + ": " + std::to_string(blocks) + " blocks are more than CUDA launches");
  const auto* function = reinterpret_cast<const void*>(kernel);
  prepare(name, function);
  cudaLaunchAttribute clusters{};
  clusters.id = cudaLaunchAttributeClusterDimension;
  clusters.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &clusters;
  config.numAttrs = cluster > 1 ? 1 : 0;
  void* arguments[] = {const_cast<Params*>(&params)};
  check(name, cudaLaunchKernelExC(&config, function, arguments));
}

}  // namespace gala::cuda

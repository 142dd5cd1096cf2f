// Imitates CUDA's runtime with GPUs that execute nothing. Launches are counted, and checked against the limits of the
// CUDA programming guide and against what earlier calls have allowed. Errors stay until they are asked for, as in CUDA.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "../../../csrc/gala.h"

namespace {

constexpr int kAlwaysAllowed = 48 << 10;

struct Gpu {
  int shared_limit, major, minor;
};

struct Counts {
  int64_t launches, refused, limits_set, limits_lowered;
};

std::recursive_mutex mutex;
std::map<int, Gpu> gpus;
Counts counts;
std::map<std::pair<const void*, int>, int> limits;  // of loaded kernels
std::string failing;  // the call that fails once
void (*watcher)(const char* symbol, int64_t blocks, int64_t threads, int64_t shared, const void* params) = nullptr;
bool capturing = false;
thread_local int device = 0;
thread_local cudaError_t last = cudaSuccess;
thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;

cudaError_t done(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

bool fails(const char* call) {
  const std::lock_guard lock(mutex);
  if (failing != call) return false;
  failing.clear();
  return true;
}

bool within(const dim3& size, unsigned x, unsigned y, unsigned z) {
  return size.x >= 1 && size.x <= x && size.y >= 1 && size.y <= y && size.z >= 1 && size.z <= z;
}

cudaError_t why_not(const cudaLaunchConfig_t& config, const void* kernel) {
  const Gpu& gpu = gpus.at(device);
  if (!within(config.gridDim, INT32_MAX, 65535, 65535) || !within(config.blockDim, 1024, 1024, 64) ||
      config.blockDim.x * config.blockDim.y * config.blockDim.z > 1024)
    return cudaErrorInvalidConfiguration;
  const auto limit = limits.find({kernel, device});
  if (capturing && limit == limits.end()) return cudaErrorStreamCaptureUnsupported;
  if (config.dynamicSmemBytes > static_cast<size_t>(limit == limits.end() ? kAlwaysAllowed : limit->second))
    return cudaErrorInvalidValue;
  if (config.numAttrs > 0) {
    const unsigned cluster = config.attrs[0].val.clusterDim.x;
    if (gpu.major < 9 || cluster < 1 || cluster > 8 || config.gridDim.x % cluster) return cudaErrorInvalidConfiguration;
  }
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaGetLastError() { return std::exchange(last, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
  }
  return "?";
}

cudaError_t cudaGetDevice(int* to) {
  *to = device;
  return done(fails("cudaGetDevice") ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t cudaDeviceGetAttribute(int* to, cudaDeviceAttr which, int of) {
  const Gpu& gpu = gpus.at(of);
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor: *to = gpu.major; break;
    case cudaDevAttrComputeCapabilityMinor: *to = gpu.minor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *to = gpu.shared_limit; break;
  }
  return done(fails("cudaDeviceGetAttribute") ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* to, const void* kernel) {
  const std::lock_guard lock(mutex);
  if (fails("cudaFuncGetAttributes")) return done(cudaErrorMemoryAllocation);
  if (capturing && mode != cudaStreamCaptureModeRelaxed) return done(cudaErrorStreamCaptureUnsupported);
  to->sharedSizeBytes = 0;
  limits.insert({{kernel, device}, kAlwaysAllowed});
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  const std::lock_guard lock(mutex);
  if (fails("cudaFuncSetAttribute")) return done(cudaErrorMemoryAllocation);
  if (value < 0 || value > gpus[device].shared_limit) return done(cudaErrorInvalidValue);
  int& limit = limits.insert({{kernel, device}, 0}).first->second;
  ++counts.limits_set;
  counts.limits_lowered += value < limit;
  limit = value;
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* other) {
  std::swap(mode, *other);
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  std::this_thread::yield();  // gives other threads a turn between a thread's setting of limits and its launch
  const std::lock_guard lock(mutex);
  const cudaError_t error = fails("cudaLaunchKernelExC") ? cudaErrorMemoryAllocation : why_not(*config, kernel);
  error == cudaSuccess ? ++counts.launches : ++counts.refused;
  Dl_info found;
  if (watcher && dladdr(kernel, &found))
    watcher(found.dli_sname, config->gridDim.x, config->blockDim.x, static_cast<int64_t>(config->dynamicSmemBytes),
            arguments[0]);
  return done(error);
}

extern "C" {

Counts mock_counts;

void mock_set_gpu(int index, int shared_limit, int major, int minor) { gpus[index] = {shared_limit, major, minor}; }
void mock_use_gpu(int index) { device = index; }
void mock_fail(const char* call) { failing = call; }
void mock_watch(decltype(watcher) called) { watcher = called; }  // at each launch, the kernel by its symbol
void mock_capture(int on) { capturing = on != 0; }
int mock_last_error() { return last; }
int mock_capture_mode() { return mode; }
const Counts* mock_take_counts() {
  mock_counts = std::exchange(counts, {});
  return &mock_counts;
}

// Runs forward and backward of all problems `rounds` times in each of two threads, which begin at different problems,
// on the current GPU; returns how often one of the calls threw.
int mock_two_threads(const gala::Problem* p, const gala::Forward* f, const gala::Backward* b,
                     const gala::cuda::Execution* e, int problems, int rounds) {
  int thrown[2] = {};
  const auto work = [&, gpu = device](int thread) {
    device = gpu;
    for (int i = 0; i < rounds * problems; ++i) {
      const int at = (i + thread * problems / 2) % problems;
      try {
        gala::cuda::forward(p[at], f[at], *e);
        gala::cuda::backward(p[at], b[at], *e);
      } catch (const std::exception&) {
        ++thrown[thread];
      }
    }
  };
  std::thread other(work, 1);
  work(0);
  other.join();
  return thrown[0] + thrown[1];
}
}

// The private operators gala_native::* for CUDA tensors: on x's device, on its current stream, in one workspace.

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string_view>

#include "torch_tensors.h"

namespace {

using namespace gala::bindings;
using torch::stable::accelerator::DeviceGuard;
using torch::stable::accelerator::DeviceIndex;

DeviceIndex cuda_device(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cuda(), "x is not on a CUDA device, as another tensor is");
  return x.get_device_index();
}

// The extension links libtorch_cpu alone, so that it loads under every torch; libtorch_cuda is loaded where there are
// CUDA tensors.
void* current_stream(DeviceIndex device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const auto function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(function, "aoti_torch_get_current_cuda_stream was not found in libtorch_cuda.so");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return stream;
}

// Its memory may be used again by what comes later on the same stream.
Tensor workspace_of(const Tensor& x, int64_t bytes) { return new_tensor(x, {bytes}, ScalarType::Byte); }

// GALA_CUDA_CLUSTER=1 has an image held by a cluster where that is possible. Off, until a GPU has shown it to be right.
bool clusters_wanted() {
  const char* value = std::getenv("GALA_CUDA_CLUSTER");
  return value && std::string_view(value) == "1";
}

void run_forward(gala::Problem& problem, const gala::Forward& f, const Tensor& x, bool tf32) {
  const DeviceGuard guard(cuda_device(x));
  const bool cluster = clusters_wanted() && !gala::cuda::why_not_in_cluster(problem, f);
  const int64_t bytes = cluster ? gala::cuda::cluster_workspace(problem) : gala::cuda::forward_workspace(problem, f);
  const Tensor workspace = workspace_of(x, bytes);
  const gala::cuda::Execution execution{current_stream(x.get_device_index()), workspace.data_ptr(), tf32};
  cluster ? gala::cuda::forward_in_cluster(problem, f, execution) : gala::cuda::forward(problem, f, execution);
}

void run_backward(gala::Problem& problem, const gala::Backward& b, const Tensor& x, bool tf32) {
  const DeviceGuard guard(cuda_device(x));
  const Tensor workspace = workspace_of(x, gala::cuda::backward_workspace(problem, b));
  gala::cuda::backward(problem, b, {current_stream(x.get_device_index()), workspace.data_ptr(), tf32});
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gala_native, CUDA, m) {
  m.impl("forward", TORCH_BOX(&forward<run_forward>));
  m.impl("backward", TORCH_BOX(&backward<run_backward>));
}

// Forward and backward on the current CUDA device in float. Ends with 77 where there is none.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <memory>

#include "block.h"

namespace {

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

// Memory on the device.
template <class T>
class Array {
 public:
  explicit Array(size_t size) : size_(size) {
    void* data;
    check(cudaMalloc(&data, std::max<size_t>(1, size) * sizeof(T)));
    data_.reset(static_cast<T*>(data));
  }
  explicit Array(const Tensor& values) : Array(values.size()) {
    const std::vector<T> given(values.begin(), values.end());
    check(cudaMemcpy(data(), given.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  T* data() const { return data_.get(); }
  std::vector<T> copy() const {
    std::vector<T> values(size_);
    check(cudaMemcpy(values.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  struct Free {
    void operator()(T* data) const { cudaFree(data); }
  };
  size_t size_;
  std::unique_ptr<T, Free> data_;
};

gala::FeatureMap map_of(const Array<float>& t) { return {t.data(), shape.channels * shape.pixels, shape.pixels, 1}; }

}  // namespace

int main() {
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess || devices == 0) {
    std::printf("no CUDA device: %s\n", cudaGetErrorString(error));
    return 77;
  }
  std::mt19937 generator(1);
  Block block = random_block(generator);
  const Tensor direction = normal(block.x.size(), generator);
  std::vector<Array<float>> inputs, grads;
  for (const Tensor* tensor : block.tensors()) {
    inputs.emplace_back(*tensor);
    grads.emplace_back(tensor->size());
  }

  gala::Problem problem{};
  problem.shape = shape;
  problem.dtype = gala::DType::f32;
  problem.squash = gala::Squash::tanh;
  problem.channels_last = false;
  problem.weights = {inputs[1].data(), inputs[2].data(), inputs[3].data(),
                     inputs[4].data(), inputs[5].data(), inputs[6].data()};

  cudaStream_t stream;
  check(cudaStreamCreate(&stream));
  const Array<float> out(block.x.size()), stats(stats_size), grad_out(direction);
  const Array<int32_t> relu_mask(relu_mask_size);
  gala::Forward forward{};
  forward.x = map_of(inputs[0]);
  forward.out = map_of(out);
  forward.stats = stats.data();
  forward.relu_mask = relu_mask.data();
  const Array<char> workspace(gala::cuda::forward_workspace(problem, forward));
  gala::cuda::forward(problem, forward, {stream, workspace.data(), false});

  gala::Backward backward{};
  backward.x = forward.x;
  backward.grad_out = map_of(grad_out);
  backward.stats = forward.stats;
  backward.relu_mask = forward.relu_mask;
  backward.grad_x = map_of(grads[0]);
  backward.grads = {grads[1].data(), grads[2].data(), grads[3].data(),
                    grads[4].data(), grads[5].data(), grads[6].data()};
  const Array<char> backward_workspace(gala::cuda::backward_workspace(problem, backward));
  gala::cuda::backward(problem, backward, {stream, backward_workspace.data(), false});
  check(cudaStreamSynchronize(stream));

  std::printf("with CUDA, kernels for %s\n", gala::cuda::architectures());
  bool good = close("out", out.copy(), formula(block), 1e-5);
  const char* names[] = {"x", "w_shrink", "w_expand", "v_shrink", "v_collapse", "a", "m"};
  for (int i = 0; i < 7; ++i)
    good &= close(names[i], grads[i].copy(), difference(block, *block.tensors()[i], direction), 1e-5);
  check(cudaStreamDestroy(stream));
  return good ? 0 : 1;
}

// A small GALA block, its formulas as loops, and its gradients by differences: what the library is compared with.
#pragma once

#include <gala/gala.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

constexpr gala::Shape shape{2, 5, 6, 3};  // images, channels, pixels, reduced width
constexpr int64_t stats_size = shape.images * (shape.pixels + shape.channels + shape.reduced);
constexpr int64_t relu_mask_size = shape.images * shape.pixels * ((shape.reduced + 31) / 32);

using Tensor = std::vector<double>;

struct Block {
  Tensor x;  // [N, C, HW]
  Tensor w_shrink, w_expand, v_shrink, v_collapse, a, m;

  std::vector<Tensor*> tensors() { return {&x, &w_shrink, &w_expand, &v_shrink, &v_collapse, &a, &m}; }
};

inline Tensor normal(int64_t size, std::mt19937& generator) {
  std::normal_distribution<double> distribution;
  Tensor values(size);
  for (double& value : values) value = distribution(generator);
  return values;
}

inline Block random_block(std::mt19937& generator) {
  const auto [n, c, hw, r] = shape;
  Block block;
  const int64_t sizes[] = {n * c * hw, r * c, c * r, r * c, r, c, c};
  const int64_t* size = sizes;
  for (Tensor* tensor : block.tensors()) *tensor = normal(*size++, generator);
  return block;
}

// One image x [C, HW] -> out [C, HW].
inline void formula(const Block& w, const double* x, double* out) {
  const auto [n, c, hw, r] = shape;
  Tensor g(c), s(hw);
  for (int64_t k = 0; k < r; ++k) {
    double z = 0;
    for (int64_t i = 0; i < c * hw; ++i) z += w.w_shrink[k * c + i / hw] * x[i] / hw;
    for (int64_t j = 0; j < c; ++j) g[j] += w.w_expand[j * r + k] * std::max(z, 0.0);
    for (int64_t i = 0; i < hw; ++i) {
      double h = 0;
      for (int64_t j = 0; j < c; ++j) h += w.v_shrink[k * c + j] * x[j * hw + i];
      s[i] += w.v_collapse[k] * std::max(h, 0.0);
    }
  }
  for (int64_t j = 0; j < c; ++j)
    for (int64_t i = 0; i < hw; ++i)
      out[j * hw + i] = x[j * hw + i] * std::tanh(w.a[j] * (g[j] + s[i]) + w.m[j] * (g[j] * s[i]));
}

inline Tensor formula(const Block& block) {
  Tensor out(block.x.size());
  const int64_t image = shape.channels * shape.pixels;
  for (int64_t n = 0; n < shape.images; ++n) formula(block, &block.x[n * image], &out[n * image]);
  return out;
}

// The gradient of sum(out * grad_out) for `tensor`, one of the block's.
inline Tensor difference(Block& block, Tensor& tensor, const Tensor& grad_out) {
  constexpr double step = 1e-5;
  Tensor gradient;
  for (double& value : tensor) {
    const double kept = value;
    value = kept + step;
    const Tensor above = formula(block);
    value = kept - step;
    const Tensor below = formula(block);
    value = kept;
    double sum = 0;
    for (size_t i = 0; i < above.size(); ++i) sum += grad_out[i] * (above[i] - below[i]) / (2 * step);
    gradient.push_back(sum);
  }
  return gradient;
}

// Prints the largest error relative to the largest value; whether it is within `limit`.
template <class T>
bool close(const char* name, const std::vector<T>& got, const Tensor& want, double limit) {
  double error = 0, scale = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error = std::max(error, std::abs(got[i] - want[i]));
    scale = std::max(scale, std::abs(want[i]));
  }
  const bool good = got.size() == want.size() && error <= limit * scale;
  std::printf("%-16s %.1e of %.1e %s\n", name, error / scale, limit, good ? "" : "FAILED");
  return good;
}

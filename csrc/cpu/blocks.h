// What all stages share: blocks of pixels, parallel loops over them, scratch memory and typed views.
#pragma once

#include "../gala.h"
#include "runtime.h"
#include "simd.h"

namespace gala::cpu::GALA_ISA {

// Calls body<T, squash>() for the problem's dtype and squash.
template <class Body>
void specialise(const Problem& problem, const Body& body) {
  const auto with = [&]<class T>() {
    switch (problem.squash) {
      case Squash::tanh: return body.template operator()<T, Squash::tanh>();
      case Squash::sigmoid: return body.template operator()<T, Squash::sigmoid>();
    }
  };
  switch (problem.dtype) {
    case DType::f32: return with.template operator()<float>();
    case DType::f64: return with.template operator()<double>();
    case DType::bf16: return with.template operator()<bf16>();
    case DType::f16: return with.template operator()<f16>();
  }
}

// Some neighbouring pixels of one image, or several whole images.
struct Block {
  int64_t image, images, pixel, pixels;
  int64_t rows() const { return images * pixels; }
};

// Cuts images into blocks of some hundred rows, enough for all threads and few enough bytes for the L2 cache.
class Blocks {
 public:
  explicit Blocks(const Problem& problem) : shape_(problem.shape) {
    const int64_t rows = larger(56, smaller(224, 131072 / larger(1, shape_.channels)));
    const int64_t for_threads = smaller(ceil_div(problem.parallel.threads, shape_.images), ceil_div(shape_.pixels, 14));
    per_image_ = larger(ceil_div(shape_.pixels, rows), for_threads);
    pixels_ = ceil_div(shape_.pixels, per_image_);
    per_image_ = ceil_div(shape_.pixels, pixels_);
    images_ = per_image_ > 1 ? 1 : larger(1, smaller(rows / shape_.pixels, shape_.images / problem.parallel.threads));
  }
  int64_t per_image() const { return per_image_; }
  int64_t max_rows() const { return images_ * pixels_; }
  // Of the images [first, end), which a block never leaves.
  int64_t count(int64_t first, int64_t end) const { return ceil_div(end - first, images_) * per_image_; }
  Block get(int64_t first, int64_t end, int64_t index) const {
    const int64_t image = first + index / per_image_ * images_, pixel = index % per_image_ * pixels_;
    return {image, smaller(images_, end - image), pixel, smaller(pixels_, shape_.pixels - pixel)};
  }
  // How many images to take through all stages before the next ones, so that a second read of x hits the cache: chunks
  // of equal size.
  int64_t images_per_chunk(int64_t bytes_per_element) const {
    const int64_t bytes = shape_.images * shape_.channels * shape_.pixels * bytes_per_element;
    const int64_t images = ceil_div(shape_.images, ceil_div(bytes, kCacheBytes));
    return smaller(shape_.images, ceil_div(images, images_) * images_);
  }

 private:
  static constexpr int64_t kCacheBytes = 16 << 20;
  Shape shape_;
  int64_t per_image_, pixels_, images_;
};

template <class Body>
void parallel(const Problem& problem, int64_t tasks, const Body& body) {
  const Shape& s = problem.shape;
  const bool tiny = s.images * s.pixels * s.channels * s.reduced < (1 << 16);
  if (tasks <= 1 || problem.parallel.threads <= 1 || tiny) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  problem.parallel.run(
      tasks, [](void* context, int64_t task) { (*static_cast<const Body*>(context))(task); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Hands out arrays from one piece of scratch memory; the first pass over the sizes, with no memory yet, only adds up.
template <class A>
class Arrays {
 public:
  explicit Arrays(A* memory = nullptr) : memory_(memory) {}
  A* take(int64_t count) {
    A* array = memory_ ? memory_ + used_ : nullptr;
    used_ += ceil_div(count, kPanelAlign) * kPanelAlign;
    return array;
  }
  size_t bytes() const { return static_cast<size_t>(used_) * sizeof(A); }

 private:
  static constexpr int64_t kPanelAlign = 16;
  A* memory_;
  int64_t used_ = 0;
};

// Lays the arrays of a struct with `void place(Arrays<A>&)` out in scratch memory.
template <class A, class Layout>
void allocate(Scratch kind, Layout& layout) {
  Arrays<A> sizes;
  layout.place(sizes);
  Arrays<A> arrays(static_cast<A*>(scratch(kind, sizes.bytes() + sizeof(A))));
  layout.place(arrays);
}

template <class T>
inline T* at(const FeatureMap& map, int64_t image, int64_t channel, int64_t pixel) {
  return static_cast<T*>(map.data) + image * map.image_stride + channel * map.channel_stride + pixel * map.pixel_stride;
}

template <class A>
inline const A* as(const void* p) {
  return static_cast<const A*>(p);
}

// sums[cols] = the sum of the rows of matrix [rows, cols].
template <class A>
void sum_matrix_rows(const A* matrix, int64_t rows, int64_t cols, void* sums) {
  A* to = static_cast<A*>(sums);
  for (int64_t c = 0; c < cols; ++c) to[c] = 0;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < cols; ++c) to[c] += matrix[i * cols + c];
}

// The parts of one image's row of statistics.
template <class A>
struct Stats {
  A *s, *p, *z;
  Stats(const void* stats, const Shape& shape, int64_t image)
      : s(static_cast<A*>(const_cast<void*>(stats)) + image * width(shape)), p(s + shape.pixels),
        z(p + shape.channels) {}
  static int64_t width(const Shape& shape) { return shape.pixels + shape.channels + shape.reduced; }
};

}  // namespace gala::cpu::GALA_ISA

// scale: out = x * squash(alpha + beta * s), with a residual relu(out + residual), and the map; and its backward.
//
// Both layouts walk memory in order: with channels_last the vectors run along the channels of a pixel, with pixel lanes
// along the pixels of a channel.
#pragma once

#include "blocks.h"
#include "squash.h"

namespace gala::cpu::GALA_ISA {

template <class A>
struct Gates {
  const A *alpha, *beta;  // [C] of one image, or of several
  Gates of(int64_t image, int64_t channels) const { return {alpha + image * channels, beta + image * channels}; }
};

template <class T, Squash squash, class A = Acc<T>>
inline Vec<A> scale_vector(const T* x, const T* residual, T* out, Vec<A> alpha, Vec<A> beta, Vec<A> s, int64_t count) {
  const Vec<A> attention = apply<squash, A>(alpha + beta * s);
  Vec<A> result = load(x, count) * attention;
  if (residual) result = relu<A>(result + load(residual, count));
  store(out, result, count);
  return attention;
}

// One image's part of a block; map_row [pixels of the block] or null.
template <class T, Squash squash, class A = Acc<T>>
void scale_forward(const Problem& problem, const Forward& f, int64_t image, int64_t pixel, int64_t pixels,
                   const Gates<A>& gates, const A* s, A* map) {
  constexpr int64_t L = kLanes<A>;
  const int64_t channels = problem.shape.channels;
  const bool add = f.residual.data != nullptr;
  if (problem.channels_last) {
    for (int64_t i = 0; i < pixels; ++i) {
      const T* x = at<T>(f.x, image, 0, pixel + i);
      const T* residual = add ? at<T>(f.residual, image, 0, pixel + i) : nullptr;
      T* out = at<T>(f.out, image, 0, pixel + i);
      Vec<A> squares = {};
      for (int64_t c = 0; c < channels; c += L) {
        const int64_t count = channels - c;
        const Vec<A> attention =
            scale_vector<T, squash>(x + c, add ? residual + c : nullptr, out + c, load(gates.alpha + c, count),
                                    load(gates.beta + c, count), splat<A>(s[i]), count);
        if (map) squares += count < L ? drop_lanes<A>(attention * attention, count) : attention * attention;
      }
      if (map) map[i] = sum_lanes<A>(squares);
    }
  } else {
    for (int64_t i = 0; map && i < pixels; ++i) map[i] = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const T* x = at<T>(f.x, image, c, pixel);
      const T* residual = add ? at<T>(f.residual, image, c, pixel) : nullptr;
      T* out = at<T>(f.out, image, c, pixel);
      for (int64_t i = 0; i < pixels; i += L) {
        const int64_t count = pixels - i;
        const Vec<A> attention =
            scale_vector<T, squash>(x + i, add ? residual + i : nullptr, out + i, splat<A>(gates.alpha[c]),
                                    splat<A>(gates.beta[c]), load(s + i, count), count);
        if (map) store(map + i, load(map + i, count) + attention * attention, count);
      }
    }
  }
  for (int64_t i = 0; map && i < pixels; ++i) map[i] = __builtin_sqrt(map[i]);
}

// The images [first, end), whose gates [images, C] these are and whose s is in the statistics.
template <class T, Squash squash, class A = Acc<T>>
void scale_images(const Problem& problem, const Forward& f, const Blocks& blocks, int64_t first, int64_t end,
                  const Gates<A>& gates) {
  const Shape& s = problem.shape;
  parallel(problem, blocks.count(first, end), [&](int64_t i) {
    const Block block = blocks.get(first, end, i);
    for (int64_t image = block.image; image < block.image + block.images; ++image) {
      A* map = f.map ? static_cast<A*>(f.map) + image * s.pixels + block.pixel : nullptr;
      scale_forward<T, squash>(problem, f, image, block.pixel, block.pixels, gates.of(image - first, s.channels),
                               Stats<A>(f.stats, s, image).s + block.pixel, map);
    }
  });
}

// The pointers of a vector's operands in the backward pass, and its results: e, and d A where grad_x is wanted.
template <class T>
struct ScalePointers {
  const T *x, *grad_out, *out;  // out is null without a residual
  T *grad_residual, *grad_x;  // may be null
  ScalePointers(const Backward& b, int64_t image, int64_t channel, int64_t pixel)
      : x(at<T>(b.x, image, channel, pixel)), grad_out(at<T>(b.grad_out, image, channel, pixel)),
        out(b.out.data ? at<T>(b.out, image, channel, pixel) : nullptr),
        grad_residual(b.out.data ? at<T>(b.grad_residual, image, channel, pixel) : nullptr),
        grad_x(b.grad_x.data ? at<T>(b.grad_x, image, channel, pixel) : nullptr) {}
};

// e = (d x + map_factor A) squash'(A), where map_factor is dMap / map. Writes d as the residual's gradient and, where
// grad_x loses nothing by it, d A, to which the gather's backward adds the rest.
template <class T, Squash squash, class A = Acc<T>>
inline Vec<A> scale_backward_vector(const ScalePointers<T>& p, int64_t at, Vec<A> alpha, Vec<A> beta, Vec<A> s,
                                    Vec<A> map_factor, int64_t count) {
  const Vec<A> attention = apply<squash, A>(alpha + beta * s);
  Vec<A> grad = load(p.grad_out + at, count);
  if (p.out) {
    grad = load(p.out + at, count) <= A(0) ? Vec<A>{} : grad;
    store(p.grad_residual + at, grad, count);
  }
  if constexpr (sizeof(T) == sizeof(A))
    if (p.grad_x) store(p.grad_x + at, grad * attention, count);
  return (grad * load(p.x + at, count) + map_factor * attention) * derivative<squash, A>(attention);
}

// One image's part of a block: adds to d_alpha and d_beta [C], writes ds [pixels of the block].
template <class T, Squash squash, class A = Acc<T>>
void scale_backward(const Problem& problem, const Backward& b, int64_t image, int64_t pixel, int64_t pixels,
                    const Gates<A>& gates, const A* s, const A* map_factor, A* d_alpha, A* d_beta, A* ds) {
  constexpr int64_t L = kLanes<A>;
  const int64_t channels = problem.shape.channels;
  if (problem.channels_last) {
    for (int64_t i = 0; i < pixels; ++i) {
      const ScalePointers<T> p(b, image, 0, pixel + i);
      const Vec<A> si = splat<A>(s[i]), factor = splat<A>(map_factor ? map_factor[i] : A(0));
      Vec<A> total = {};
      for (int64_t c = 0; c < channels; c += L) {
        const int64_t count = channels - c;
        const Vec<A> beta = load(gates.beta + c, count);
        const Vec<A> e = scale_backward_vector<T, squash>(p, c, load(gates.alpha + c, count), beta, si, factor, count);
        store(d_alpha + c, load(d_alpha + c, count) + e, count);
        store(d_beta + c, load(d_beta + c, count) + e * si, count);
        total += count < L ? drop_lanes<A>(e * beta, count) : e * beta;
      }
      ds[i] = sum_lanes<A>(total);
    }
  } else {
    for (int64_t i = 0; i < pixels; ++i) ds[i] = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const ScalePointers<T> p(b, image, c, pixel);
      Vec<A> alpha_total = {}, beta_total = {};
      for (int64_t i = 0; i < pixels; i += L) {
        const int64_t count = pixels - i;
        const Vec<A> si = load(s + i, count), factor = map_factor ? load(map_factor + i, count) : Vec<A>{};
        Vec<A> e = scale_backward_vector<T, squash>(p, i, splat<A>(gates.alpha[c]), splat<A>(gates.beta[c]), si, factor,
                                                    count);
        if (count < L) e = drop_lanes<A>(e, count);
        alpha_total += e;
        beta_total += e * si;
        store(ds + i, load(ds + i, count) + e * gates.beta[c], count);
      }
      d_alpha[c] += sum_lanes<A>(alpha_total);
      d_beta[c] += sum_lanes<A>(beta_total);
    }
  }
}

// What the scale's backward sums up: in the parts [images, blocks of an image, C] that each block has of them, d alpha
// and d beta [images, C], and ds [N, HW].
template <class A>
struct ScaleSums {
  A *alpha_parts, *beta_parts, *d_alpha, *d_beta, *ds;
};

// The images [first, end), as of scale_images.
template <class T, Squash squash, class A = Acc<T>>
void scale_images_backward(const Problem& problem, const Backward& b, const Blocks& blocks, int64_t first, int64_t end,
                           const Gates<A>& gates, const ScaleSums<A>& sums) {
  const Shape& s = problem.shape;
  const int64_t channels = s.channels, parts = blocks.per_image();
  parallel(problem, blocks.count(first, end), [&](int64_t i) {
    const Block block = blocks.get(first, end, i);
    for (int64_t image = block.image; image < block.image + block.images; ++image) {
      const int64_t part = ((image - first) * parts + i % parts) * channels, pixel = image * s.pixels + block.pixel;
      for (int64_t c = 0; c < channels; ++c) sums.alpha_parts[part + c] = sums.beta_parts[part + c] = 0;
      scale_backward<T, squash>(problem, b, image, block.pixel, block.pixels, gates.of(image - first, channels),
                                Stats<A>(b.stats, s, image).s + block.pixel,
                                b.map_factor ? as<A>(b.map_factor) + pixel : nullptr, sums.alpha_parts + part,
                                sums.beta_parts + part, sums.ds + pixel);
    }
  });
  for (int64_t i = 0; i < end - first; ++i) {
    sum_matrix_rows(sums.alpha_parts + i * parts * channels, parts, channels, sums.d_alpha + i * channels);
    sum_matrix_rows(sums.beta_parts + i * parts * channels, parts, channels, sums.d_beta + i * channels);
  }
}

}  // namespace gala::cpu::GALA_ISA

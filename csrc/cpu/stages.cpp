// The three stages in order, forward and backward, chunk of images by chunk. Compiled once for each instruction set,
// whose name is GALA_ISA.

#include "gate.h"
#include "gather.h"
#include "scale.h"

namespace gala::cpu::GALA_ISA {

template <class A>
struct ForwardMemory {
  const Shape& shape;
  int64_t images, pool_parts;  // of a chunk
  A* v_shrink = nullptr;  // transposed, in panels
  A *pool = nullptr, *alpha = nullptr, *beta = nullptr, *hidden = nullptr;
  void place(Arrays<A>& arrays) {
    v_shrink = arrays.take(panels_size(shape.channels, shape.reduced));
    pool = arrays.take(images * pool_parts * shape.channels);
    alpha = arrays.take(images * shape.channels);
    beta = arrays.take(images * shape.channels);
    hidden = arrays.take(images * shape.reduced);
  }
};

// The pooled mean of one image from the sums of its blocks.
template <class A>
void finish_pool(const Shape& s, const A* parts, int64_t count, A* p) {
  const A share = A(1) / static_cast<A>(s.pixels);
  for (int64_t c = 0; c < s.channels; ++c) {
    A sum = 0;
    for (int64_t part = 0; part < count; ++part) sum += parts[part * s.channels + c];
    p[c] = sum * share;
  }
}

template <class T, Squash squash>
void forward(const Problem& problem, const Forward& f) {
  using A = Acc<T>;
  const Shape& s = problem.shape;
  const Blocks blocks(problem);
  const int64_t chunk = blocks.images_per_chunk(sizeof(T)), parts = blocks.per_image();
  ForwardMemory<A> memory{s, chunk, parts};
  allocate<A>(Scratch::call, memory);
  pack_weight(problem, problem.weights.v_shrink, s.reduced, s.channels, true, memory.v_shrink);

  for (int64_t first = 0; first < s.images; first += chunk) {
    const int64_t end = smaller(s.images, first + chunk), tasks = blocks.count(first, end);
    parallel(problem, tasks, [&](int64_t i) {
      const Block block = blocks.get(first, end, i);
      A* pool = memory.pool + ((block.image - first) * parts + i % parts) * s.channels;
      gather_block<T>(problem, f, block, memory.v_shrink, pool, parts * s.channels);
    });
    for (int64_t image = first; image < end; ++image)
      finish_pool(s, memory.pool + (image - first) * parts * s.channels, parts, Stats<A>(f.stats, s, image).p);
    gate_forward(problem, f.stats, first, end - first, memory.hidden, memory.alpha, memory.beta);
    parallel(problem, tasks, [&](int64_t i) {
      const Block block = blocks.get(first, end, i);
      for (int64_t image = block.image; image < block.image + block.images; ++image) {
        const int64_t offset = (image - first) * s.channels;
        A* map = f.map ? static_cast<A*>(f.map) + image * s.pixels + block.pixel : nullptr;
        scale_forward<T, squash>(problem, f, image, block.pixel, block.pixels,
                                 {memory.alpha + offset, memory.beta + offset},
                                 Stats<A>(f.stats, s, image).s + block.pixel, map);
      }
    });
  }
}

template <class A>
struct BackwardMemory {
  const Shape& shape;
  int64_t images, sum_parts, groups;  // images of a chunk
  A* shrink = nullptr;  // v_collapse times the rows of v_shrink, in panels
  A *alpha = nullptr, *beta = nullptr, *alpha_parts = nullptr, *beta_parts = nullptr, *dp = nullptr;  // of a chunk
  A *g = nullptr, *hidden = nullptr;  // of all images, as those below; hidden is relu(z)
  A *d_alpha = nullptr, *d_beta = nullptr, *dg = nullptr, *dz = nullptr, *ds = nullptr;
  A *t = nullptr, *counts = nullptr;  // [groups, R, C], [groups, R]
  void place(Arrays<A>& arrays) {
    const int64_t c = shape.channels, r = shape.reduced, n = shape.images;
    shrink = arrays.take(panels_size(r, c));
    alpha = arrays.take(images * c);
    beta = arrays.take(images * c);
    alpha_parts = arrays.take(images * sum_parts * c);
    beta_parts = arrays.take(images * sum_parts * c);
    dp = arrays.take(images * c);
    g = arrays.take(n * c);
    d_alpha = arrays.take(n * c);
    d_beta = arrays.take(n * c);
    dg = arrays.take(n * c);
    dz = arrays.take(n * r);
    ds = arrays.take(n * shape.pixels);
    t = arrays.take(groups * r * c);
    counts = arrays.take(groups * r);
    hidden = arrays.take(n * r);
  }
};

// The gradients of v_shrink, v_collapse and their biases from the sums of the groups.
template <class A>
void local_weight_grads(const Problem& problem, const WeightGrads& grads, const BackwardMemory<A>& memory) {
  const Shape& s = problem.shape;
  const Weights& w = problem.weights;
  constexpr int64_t L = kLanes<A>;
  parallel(problem, s.reduced, [&](int64_t r) {
    const A v = as<A>(w.v_collapse)[r], *shrink = as<A>(w.v_shrink) + r * s.channels;
    A* to = static_cast<A*>(grads.v_shrink) + r * s.channels;
    Vec<A> collapse = {};
    for (int64_t c = 0; c < s.channels; c += L) {
      const int64_t left = s.channels - c;
      Vec<A> t = {};
      for (int64_t group = 0; group < memory.groups; ++group)
        t += load(memory.t + (group * s.reduced + r) * s.channels + c, left);
      store(to + c, v * t, left);
      collapse += load(shrink + c, left) * t;
    }
    A count = 0;
    for (int64_t group = 0; group < memory.groups; ++group) count += memory.counts[group * s.reduced + r];
    const A bias_part = w.b_v_shrink ? as<A>(w.b_v_shrink)[r] * count : A(0);
    static_cast<A*>(grads.v_collapse)[r] = sum_lanes<A>(collapse) + bias_part;
    if (grads.b_v_shrink) static_cast<A*>(grads.b_v_shrink)[r] = v * count;
  });
  if (grads.b_v_collapse) {
    A total = 0;
    for (int64_t image = 0; image < s.images; ++image) {
      A sum = 0;
      for (int64_t i = 0; i < s.pixels; ++i) sum += memory.ds[image * s.pixels + i];
      total += sum;
    }
    *static_cast<A*>(grads.b_v_collapse) = total;
  }
}

// alpha, beta, d alpha, d beta and ds of the images [first, end).
template <class T, Squash squash, class A = Acc<T>>
void scale_backward_chunk(const Problem& problem, const Backward& b, const Blocks& blocks, int64_t first, int64_t end,
                          const BackwardMemory<A>& memory) {
  const Shape& s = problem.shape;
  const int64_t channels = s.channels, parts = memory.sum_parts;
  expand(problem, b.stats, first, end - first, memory.hidden + first * s.reduced, memory.g + first * channels);
  for (int64_t image = first; image < end; ++image) {
    const int64_t offset = (image - first) * channels;
    open_gates<A>(problem, memory.g + image * channels, memory.alpha + offset, memory.beta + offset);
  }
  parallel(problem, blocks.count(first, end), [&](int64_t i) {
    const Block block = blocks.get(first, end, i);
    for (int64_t image = block.image; image < block.image + block.images; ++image) {
      const int64_t offset = (image - first) * channels, part = offset * parts + i % parts * channels;
      const int64_t pixel = image * s.pixels + block.pixel;
      for (int64_t c = 0; c < channels; ++c) memory.alpha_parts[part + c] = memory.beta_parts[part + c] = 0;
      scale_backward<T, squash>(
          problem, b, image, block.pixel, block.pixels, {memory.alpha + offset, memory.beta + offset},
          Stats<A>(b.stats, s, image).s + block.pixel, b.map_factor ? as<A>(b.map_factor) + pixel : nullptr,
          memory.alpha_parts + part, memory.beta_parts + part, memory.ds + pixel);
    }
  });
  for (int64_t image = first; image < end; ++image) {
    const int64_t from = (image - first) * parts * channels, to = image * channels;
    sum_matrix_rows(memory.alpha_parts + from, parts, channels, memory.d_alpha + to);
    sum_matrix_rows(memory.beta_parts + from, parts, channels, memory.d_beta + to);
  }
}

// grad_x of the images [first, end), and their part of the local weights' gradient.
template <class T, Squash squash, class A = Acc<T>>
void gather_backward_chunk(const Problem& problem, const Backward& b, const Blocks& blocks, int64_t first, int64_t end,
                           const BackwardMemory<A>& memory) {
  const Shape& s = problem.shape;
  const int64_t tasks = blocks.count(first, end), runs = memory.groups ? memory.groups : tasks;
  parallel(problem, runs, [&](int64_t run) {
    A* t = memory.groups ? memory.t + run * s.reduced * s.channels : nullptr;
    A* counts = memory.groups ? memory.counts + run * s.reduced : nullptr;
    const int64_t begin = run * tasks / runs;
    for (int64_t i = begin; i < (run + 1) * tasks / runs; ++i) {
      const Block block = blocks.get(first, end, i);
      const int64_t offset = (block.image - first) * s.channels;
      gather_backward_block<T, squash>(problem, b, block, memory.shrink, memory.ds, memory.alpha + offset,
                                       memory.beta + offset, memory.dp + offset, t, counts, first > 0 || i > begin);
    }
  });
}

template <class T, Squash squash>
void backward(const Problem& problem, const Backward& b) {
  using A = Acc<T>;
  const Shape& s = problem.shape;
  const Blocks blocks(problem);
  const bool need_weights = b.grads.w_shrink != nullptr;
  const int64_t chunk = blocks.images_per_chunk(3 * sizeof(T));
  // Each group of blocks sums its own part of the local weights' gradient, in order.
  const int64_t groups = need_weights ? smaller(problem.parallel.threads, blocks.count(0, chunk)) : 0;
  BackwardMemory<A> memory{s, chunk, blocks.per_image(), groups};
  allocate<A>(Scratch::call, memory);
  pack_weight(problem, problem.weights.v_shrink, s.reduced, s.channels, false, memory.shrink,
              problem.weights.v_collapse);
  for (int64_t first = 0; first < s.images; first += chunk) {
    const int64_t end = smaller(s.images, first + chunk), channel = first * s.channels;
    scale_backward_chunk<T, squash>(problem, b, blocks, first, end, memory);
    gate_backward<A>(problem, b.stats, first, end - first, memory.d_alpha + channel, memory.d_beta + channel,
                     memory.dg + channel, memory.dz + first * s.reduced, memory.dp);
    gather_backward_chunk<T, squash>(problem, b, blocks, first, end, memory);
  }
  if (!need_weights) return;
  gate_weight_grads<A>(problem, b.stats, memory.g, memory.hidden, memory.d_alpha, memory.d_beta, memory.dg, memory.dz,
                       b.grads);
  local_weight_grads(problem, b.grads, memory);
}

template <class T>
void forward_as(const Problem& problem, const Forward& f) {
  switch (problem.squash) {
    case Squash::tanh: return forward<T, Squash::tanh>(problem, f);
    case Squash::sigmoid: return forward<T, Squash::sigmoid>(problem, f);
  }
}

template <class T>
void backward_as(const Problem& problem, const Backward& b) {
  switch (problem.squash) {
    case Squash::tanh: return backward<T, Squash::tanh>(problem, b);
    case Squash::sigmoid: return backward<T, Squash::sigmoid>(problem, b);
  }
}

void forward(const Problem& problem, const Forward& f) {
  switch (problem.dtype) {
    case DType::f32: return forward_as<float>(problem, f);
    case DType::f64: return forward_as<double>(problem, f);
    case DType::bf16: return forward_as<bf16>(problem, f);
    case DType::f16: return forward_as<f16>(problem, f);
  }
}

void backward(const Problem& problem, const Backward& b) {
  switch (problem.dtype) {
    case DType::f32: return backward_as<float>(problem, b);
    case DType::f64: return backward_as<double>(problem, b);
    case DType::bf16: return backward_as<bf16>(problem, b);
    case DType::f16: return backward_as<f16>(problem, b);
  }
}

}  // namespace gala::cpu::GALA_ISA

// The three stages in order, forward and backward, chunk of images by chunk. Compiled once for each instruction set,
// whose name is GALA_ISA.

#include "gate.h"
#include "gather_backward.h"
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
    const int64_t end = smaller(s.images, first + chunk);
    gather_images<T>(problem, f, blocks, first, end, memory.v_shrink, memory.pool);
    gate_forward(problem, f.stats, first, end - first, memory.hidden, memory.alpha, memory.beta);
    scale_images<T, squash>(problem, f, blocks, first, end, {memory.alpha, memory.beta});
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

// g, alpha and beta of the images [first, end).
template <class A>
void open_gates_again(const Problem& problem, const Backward& b, int64_t first, int64_t end,
                      const BackwardMemory<A>& memory) {
  const int64_t channels = problem.shape.channels;
  expand(problem, b.stats, first, end - first, memory.hidden + first * problem.shape.reduced,
         memory.g + first * channels);
  for (int64_t image = first; image < end; ++image) {
    const int64_t offset = (image - first) * channels;
    open_gates<A>(problem, memory.g + image * channels, memory.alpha + offset, memory.beta + offset);
  }
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
  const Gates<A> gates{memory.alpha, memory.beta};
  const auto fill = [&](int64_t pixel, A* panels, int64_t rows, int64_t row) {
    const int32_t* relu_mask = b.relu_mask + pixel * ceil_div(s.reduced, kWord);
    unpack_mask(memory.ds[pixel], relu_mask, s.reduced, panels, rows, row);
  };
  for (int64_t first = 0; first < s.images; first += chunk) {
    const int64_t end = smaller(s.images, first + chunk), channel = first * s.channels;
    open_gates_again(problem, b, first, end, memory);
    scale_images_backward<T, squash>(
        problem, b, blocks, first, end, gates,
        {memory.alpha_parts, memory.beta_parts, memory.d_alpha + channel, memory.d_beta + channel, memory.ds});
    gate_backward<A>(problem, b.stats, first, end - first, memory.d_alpha + channel, memory.d_beta + channel,
                     memory.dg + channel, memory.dz + first * s.reduced, memory.dp);
    gather_images_backward<T, squash>(problem, b, blocks, first, end, memory.shrink, fill, gates, memory.dp,
                                      {memory.groups, memory.t, memory.counts});
  }
  if (!need_weights) return;
  gate_weight_grads<A>(problem, b.stats, memory.g, memory.hidden, memory.d_alpha, memory.d_beta, memory.dg, memory.dz,
                       b.grads);
  local_weight_grads(problem, b.grads, memory);
}

void forward(const Problem& problem, const Forward& f) {
  specialise(problem, [&]<class T, Squash squash>() { forward<T, squash>(problem, f); });
}

void backward(const Problem& problem, const Backward& b) {
  specialise(problem, [&]<class T, Squash squash>() { backward<T, squash>(problem, b); });
}

}  // namespace gala::cpu::GALA_ISA

// The stages one by one, for the block of the authors' released code, between which the local path's hidden layer is
// convolved. Compiled once for each instruction set, whose name is GALA_ISA.

#include "gate.h"
#include "gather_backward.h"
#include "scale.h"

namespace gala::cpu::GALA_ISA {

// Calls body(first, end, task) for shares [first, end) of the pixels of all images.
template <class Body>
void share_pixels(const Problem& problem, int64_t shares, const Body& body) {
  const int64_t rows = problem.shape.images * problem.shape.pixels;
  parallel(problem, shares, [&](int64_t i) { body(i * rows / shares, (i + 1) * rows / shares, i); });
}

int64_t pixel_shares(const Problem& problem) {
  constexpr int64_t kRows = 32;  // at least, of a share
  return smaller(problem.parallel.threads, ceil_div(problem.shape.images * problem.shape.pixels, kRows));
}

template <class A>
struct GatherMemory {
  const Shape& shape;
  int64_t pool_parts;  // of an image
  A *v_shrink = nullptr, *pool = nullptr;
  void place(Arrays<A>& arrays) {
    v_shrink = arrays.take(panels_size(shape.channels, shape.reduced));
    pool = arrays.take(shape.images * pool_parts * shape.channels);
  }
};

template <class T, class A = Acc<T>>
void gather(const Problem& problem, const Forward& f, const Between& between) {
  const Shape& s = problem.shape;
  const Blocks blocks(problem);
  GatherMemory<A> memory{s, blocks.per_image()};
  allocate<A>(Scratch::call, memory);
  pack_weight(problem, problem.weights.v_shrink, s.reduced, s.channels, true, memory.v_shrink);
  gather_images<T>(problem, f, blocks, 0, s.images, memory.v_shrink, memory.pool, static_cast<A*>(between.hidden));
}

template <class T, Squash squash, class A = Acc<T>>
void scale(const Problem& problem, const Forward& f, const Between& between) {
  const Shape& s = problem.shape;
  const A* v_collapse = as<A>(problem.weights.v_collapse);
  const A shift = *as<A>(problem.weights.b_v_collapse);
  share_pixels(problem, pixel_shares(problem), [&](int64_t first, int64_t end, int64_t) {
    for (int64_t row = first; row < end; ++row)
      Stats<A>(f.stats, s, row / s.pixels).s[row % s.pixels] =
          shift + collapse(as<A>(between.hidden) + row * s.reduced, static_cast<const A*>(nullptr), v_collapse,
                           s.reduced, nullptr);
  });
  scale_images<T, squash>(problem, f, Blocks(problem), 0, s.images, {as<A>(between.alpha), as<A>(between.beta)});
}

// The gradient of one pixel's hidden layer before its ReLU [R] from ds; adds ds times the hidden layer to sums [R].
template <class A>
void collapse_backward(const A* hidden, const A* v_collapse, A ds, int64_t reduced, A* grad_hidden, A* sums) {
  constexpr int64_t L = kLanes<A>;
  for (int64_t r = 0; r < reduced; r += L) {
    const int64_t count = reduced - r;
    const Vec<A> h = load(hidden + r, count);
    store(grad_hidden + r, h <= A(0) ? Vec<A>{} : ds * load(v_collapse + r, count), count);
    store(sums + r, load(sums + r, count) + ds * relu<A>(h), count);
  }
}

template <class A>
struct ScaleBackwardMemory {
  const Shape& shape;
  int64_t sum_parts, shares;  // of an image's sums; of the pixels
  A *alpha_parts = nullptr, *beta_parts = nullptr, *ds = nullptr;
  A *collapse = nullptr, *ds_sums = nullptr;  // [shares, R], [shares]
  void place(Arrays<A>& arrays) {
    alpha_parts = arrays.take(shape.images * sum_parts * shape.channels);
    beta_parts = arrays.take(shape.images * sum_parts * shape.channels);
    ds = arrays.take(shape.images * shape.pixels);
    collapse = arrays.take(shares * shape.reduced);
    ds_sums = arrays.take(shares);
  }
};

template <class T, Squash squash, class A = Acc<T>>
void scale_backward(const Problem& problem, const Backward& b, const Between& between) {
  const Shape& s = problem.shape;
  const Blocks blocks(problem);
  ScaleBackwardMemory<A> memory{s, blocks.per_image(), pixel_shares(problem)};
  allocate<A>(Scratch::call, memory);
  scale_images_backward<T, squash>(problem, b, blocks, 0, s.images, {as<A>(between.alpha), as<A>(between.beta)},
                                   {memory.alpha_parts, memory.beta_parts, static_cast<A*>(between.d_alpha),
                                    static_cast<A*>(between.d_beta), memory.ds});
  share_pixels(problem, memory.shares, [&](int64_t first, int64_t end, int64_t share) {
    A *sums = memory.collapse + share * s.reduced, total = 0;
    for (int64_t r = 0; r < s.reduced; ++r) sums[r] = 0;
    for (int64_t row = first; row < end; ++row) {
      total += memory.ds[row];
      collapse_backward(as<A>(between.hidden) + row * s.reduced, as<A>(problem.weights.v_collapse), memory.ds[row],
                        s.reduced, static_cast<A*>(between.grad_hidden) + row * s.reduced, sums);
    }
    memory.ds_sums[share] = total;
  });
  if (!b.grads.v_collapse) return;
  sum_matrix_rows(memory.collapse, memory.shares, s.reduced, b.grads.v_collapse);
  sum_matrix_rows(memory.ds_sums, memory.shares, 1, b.grads.b_v_collapse);
}

template <class A>
struct GatherBackwardMemory {
  const Shape& shape;
  int64_t groups;
  A *shrink = nullptr, *t = nullptr, *counts = nullptr;  // v_shrink in panels; [groups, R, C]; [groups, R]
  void place(Arrays<A>& arrays) {
    shrink = arrays.take(panels_size(shape.reduced, shape.channels));
    t = arrays.take(groups * shape.reduced * shape.channels);
    counts = arrays.take(groups * shape.reduced);
  }
};

template <class T, Squash squash, class A = Acc<T>>
void gather_backward(const Problem& problem, const Backward& b, const Between& between) {
  const Shape& s = problem.shape;
  const Blocks blocks(problem);
  const int64_t groups = b.grads.v_shrink ? smaller(problem.parallel.threads, blocks.count(0, s.images)) : 0;
  GatherBackwardMemory<A> memory{s, groups};
  allocate<A>(Scratch::call, memory);
  pack_weight(problem, problem.weights.v_shrink, s.reduced, s.channels, false, memory.shrink);
  const auto fill = [&](int64_t pixel, A* panels, int64_t rows, int64_t row) {
    const A *hidden = as<A>(between.hidden) + pixel * s.reduced, *grad = as<A>(between.grad_hidden) + pixel * s.reduced;
    for (int64_t r = 0; r < s.reduced; r += kLanes<A>) {
      const int64_t count = s.reduced - r;
      store(panels + r / kPanel * kPanel * rows + row * kPanel + r % kPanel,
            load(hidden + r, count) <= A(0) ? Vec<A>{} : load(grad + r, count));
    }
  };
  gather_images_backward<T, squash>(problem, b, blocks, 0, s.images, memory.shrink, fill,
                                    {as<A>(between.alpha), as<A>(between.beta)}, as<A>(between.dp),
                                    {groups, memory.t, memory.counts});
  if (!groups) return;
  parallel(problem, s.reduced, [&](int64_t r) {
    A* to = static_cast<A*>(b.grads.v_shrink) + r * s.channels;
    for (int64_t c = 0; c < s.channels; ++c) to[c] = memory.t[r * s.channels + c];
    for (int64_t group = 1; group < groups; ++group)
      for (int64_t c = 0; c < s.channels; ++c) to[c] += memory.t[(group * s.reduced + r) * s.channels + c];
  });
  sum_matrix_rows(memory.counts, groups, s.reduced, b.grads.b_v_shrink);
}

void gather(const Problem& problem, const Forward& f, const Between& between) {
  specialise(problem, [&]<class T, Squash>() { gather<T>(problem, f, between); });
}

void scale(const Problem& problem, const Forward& f, const Between& between) {
  specialise(problem, [&]<class T, Squash squash>() { scale<T, squash>(problem, f, between); });
}

void scale_backward(const Problem& problem, const Backward& b, const Between& between) {
  specialise(problem, [&]<class T, Squash squash>() { scale_backward<T, squash>(problem, b, between); });
}

void gather_backward(const Problem& problem, const Backward& b, const Between& between) {
  specialise(problem, [&]<class T, Squash squash>() { gather_backward<T, squash>(problem, b, between); });
}

}  // namespace gala::cpu::GALA_ISA

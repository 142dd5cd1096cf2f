// The whole forward pass as one kernel. Each cluster of blocks takes one image: it reads x once and keeps it in shared
// memory between its two uses.

#include <initializer_list>
#include <primitives.cuh>
#include <stdexcept>
#include <string>

#include "../squash.cuh"
#include "global_path.cuh"
#include "local_path.cuh"

namespace gala::cuda {

// Writes out for the block's pixels, and with a map each slice's part of its sums into shared memory.
template <class T>
GALA_DEVICE void scale_rows(const ImageParams& p, const Block& block, const float* s) {
  constexpr int kInFlight = 4;
  using Vector = Packed<T, 8>;
  const Shares shares(block.slices, kImageWarps);
  const int rows = block.rows.size();
  const auto place = [&](const RowMap& map, int row, int channel) {
    return reinterpret_cast<Vector*>(static_cast<T*>(map.data) + block.image * map.image_stride +
                                     (block.rows.begin + row) * map.row_stride + channel);
  };
  for (int share = warp(); share < shares.count(); share += kImageWarps) {
    const int slice = share % shares.slices, channel = slice * kSliceChannels + lane() * 8;
    const bool inside = channel < p.channels;
    float alpha[8] = {}, beta[8] = {};
    GALA_UNROLL for (int i = 0; i < 8; ++i) if (inside) {
      alpha[i] = load_shared(block.at(p.at.gates) + channel + i);
      beta[i] = load_shared(block.at(p.at.gates) + p.channels + channel + i);
    }
    for (int top = share / shares.slices; top < rows; top += kInFlight * shares.groups) {
      Vector residual[kInFlight] = {};
      GALA_UNROLL for (int k = 0; k < kInFlight; ++k) {
        const int row = top + k * shares.groups;
        if (p.residual.data && inside && row < rows) residual[k] = load_streaming(place(p.residual, row, channel));
      }
      GALA_UNROLL for (int k = 0; k < kInFlight; ++k) {
        const int row = top + k * shares.groups;
        if (row >= rows) break;
        float value[8] = {}, added[8], square = 0.0f;
        if (inside) unpack<T>(load_shared(block.row<Vector>(p, row, channel)), value);
        unpack<T>(residual[k], added);
        GALA_UNROLL for (int i = 0; i < 8; ++i) {
          const float attention = squash<T>(std::fma(beta[i], load_shared(s + row), alpha[i]), p.squash);
          value[i] *= attention;
          if (p.residual.data) value[i] = relu(value[i] + added[i]);
          square += inside ? attention * attention : 0.0f;
        }
        if (inside) store_global(place(p.out, row, channel), pack<T>(value));
        if (!p.map) continue;
        square = sum_over_group(square, 32);
        if (lane() == 0) store_shared(block.at(p.at.squares) + slice * rows + row, square);
      }
    }
  }
}

// Adds the two parts of s for the block's pixels; puts the sums in place of the first part and into the statistics.
GALA_DEVICE const float* local_map(const ImageParams& p, const Block& block) {
  float* s = block.at(p.at.s);
  float* stats = p.stats + block.image * (int64_t{p.pixels} + p.channels + p.reduced) + block.rows.begin;
  const float* bias = static_cast<const float*>(p.weights.b_v_collapse);
  for (int row = thread_index(); row < block.rows.size(); row += kImageThreads) {
    const float sum =
        load_shared(s + row) + load_shared(s + p.passes * kTileRows + row) + (bias ? load_global(bias) : 0);
    store_shared(s + row, sum);
    store_global(stats + row, sum);
  }
  block_barrier();
  return s;
}

// Writes the map of the block's pixels from the slices' sums of squares.
GALA_DEVICE void attention_map(const ImageParams& p, const Block& block) {
  block_barrier();
  for (int row = thread_index(); row < block.rows.size(); row += kImageThreads) {
    float sum = 0.0f;
    for (int slice = 0; slice < block.slices; ++slice)
      sum += load_shared(block.at(p.at.squares) + slice * block.rows.size() + row);
    store_global(p.map + block.image * p.pixels + block.rows.begin + row, std::sqrt(sum));
  }
}

GALA_DEVICE void make_barriers(const ImageParams& p, const Block& block) {
  for (int i = 0; i < p.stages; ++i) {
    barrier_init(block.full + i, 1);
    barrier_init(block.empty + i, kLocalWarps * p.cluster);
  }
  for (int i = 0; i < block.slices; ++i) barrier_init(block.arrived + i, 1);
  barrier_init(block.exchange, kGlobalWarps * p.cluster);
  barriers_made();
}

template <class T, int padded>
GALA_KERNEL(kImageThreads, 1)
image_kernel(ImageParams p) {
  if constexpr (kHasHopper) {
    const Block block(p);
    if (thread_index() == 0) make_barriers(p, block);
    cluster_barrier();
    if (warp() < kLocalWarps) local_path<T, padded>(p, block);
    else if (warp() < kLocalWarps + kGlobalWarps) global_path<T>(p, block);
    else fetch<padded>(p, block);
    cluster_barrier();  // the last access to another block's shared memory is done
    scale_rows<T>(p, block, local_map(p, block));
    if (p.map) attention_map(p, block);
  }
}

struct TilesParams {
  const float* v_shrink;  // [R, C]
  char* packed;  // [C / kTileChannels, padded, kLineBytes], as tile_operand has it
  int channels, reduced, padded;
};
constexpr int kPackThreads = 256;

// One thread for each vector of 16 bytes; rows from R on are zeros.
template <class T>
GALA_KERNEL(kPackThreads, 4)
pack_tiles_kernel(TilesParams p) {
  const int index = block_x() * kPackThreads + thread_index(), row = index / 8 % p.padded, vector = index % 8;
  const int tile = index / 8 / p.padded, channel = tile * kTileChannels + vector * 8;
  if (channel >= p.channels) return;
  float values[8] = {};
  GALA_UNROLL for (int i = 0; i < 8; ++i) if (row < p.reduced) values[i] =
      load_global(p.v_shrink + int64_t{row} * p.channels + channel + i);
  char* to = p.packed + (int64_t{tile} * p.padded + row) * kLineBytes + (vector ^ row % 8) * 16;
  store_global(reinterpret_cast<Packed<T, 8>*>(to), pack<T>(values));
}

namespace {

// R rounded up to a size that the kernel is compiled for.
int padded_reduced(const Shape& s) { return s.reduced <= 64 ? 64 : s.reduced <= 128 ? 128 : 256; }

// What a block's shared memory holds in clusters of this many blocks.
struct Plan {
  int cluster, stages, passes;
  Layout at;

  Plan(const Shape& s, int blocks) : cluster(blocks), passes(0), at{} {
    constexpr int kMostStages = 4;
    const int64_t rows = ceil_div(s.pixels, cluster), slices = ceil_div(s.channels, kSliceChannels);
    const int64_t lines = ceil_div(rows, kTileRows), groups = slices >= kGlobalWarps ? 1 : kGlobalWarps / slices;
    const int64_t tile = padded_reduced(s) * kLineBytes, barriers = (2 * kMostStages + slices + 1) * 8;
    const int64_t floats[] = {groups * s.channels,   s.channels,   ceil_div(s.reduced, 4) * 4, 2 * s.channels,
                              2 * lines * kTileRows, slices * rows};
    int64_t bytes = rows * (s.channels * 2 + 16) + barriers;
    for (const int64_t count : floats) bytes += ceil_div(count, 4) * 16;
    const int64_t fit = (shared_limit() - bytes) / tile;
    stages = static_cast<int>(fit < kMostStages ? fit : kMostStages);
    if (!fits()) return;
    passes = static_cast<int>(lines);
    int next = static_cast<int>(stages * tile);
    const auto take = [&next](int64_t size) {
      const int here = next;
      next += static_cast<int>(ceil_div(size, 16) * 16);
      return here;
    };
    at.x = take(rows * (s.channels * 2 + 16));
    int* const places[] = {&at.sums, &at.p, &at.z, &at.gates, &at.s, &at.squares};
    for (int i = 0; i < 6; ++i) *places[i] = take(floats[i] * 4);
    at.barriers = take(barriers);
    at.bytes = next;
  }
  bool fits() const { return stages >= 2; }
};

// How many blocks a cluster has; 0 where no image fits. Few images are spread over more blocks. It depends on the shape
// alone, since it decides in which order elements are summed.
int cluster_of(const Shape& s) {
  constexpr int64_t kFewImages = 16;
  const bool eight = s.pixels >= 8 && Plan(s, 8).fits(), four = s.pixels >= 4 && Plan(s, 4).fits();
  return eight && (s.images <= kFewImages || !four) ? 8 : four ? 4 : 0;
}

bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class T>
void run(const Problem& problem, ImageParams p, const Execution& execution) {
  const Shape& s = problem.shape;
  const int padded = padded_reduced(s);
  char* packed = static_cast<char*>(execution.workspace);
  const TilesParams tiles{static_cast<const float*>(problem.weights.v_shrink), packed, p.channels, p.reduced, padded};
  launch("pack_tiles_kernel", pack_tiles_kernel<T>, {ceil_div(s.channels / 8 * padded, kPackThreads)}, kPackThreads, 0,
         execution.stream, tiles);
  p.packed = packed;
  const auto kernel = padded == 64 ? image_kernel<T, 64> : padded == 128 ? image_kernel<T, 128> : image_kernel<T, 256>;
  launch("image_kernel", kernel, {s.images * p.cluster}, kImageThreads, p.at.bytes, execution.stream, p, p.cluster);
}

}  // namespace

const char* why_not_in_cluster(const Problem& problem, const Forward& f) {
  const Shape& s = problem.shape;
  const Weights& w = problem.weights;
  for (const void* needed : std::initializer_list<const void*>{w.w_shrink, w.w_expand, w.v_shrink, w.v_collapse, w.a,
                                                               w.m, f.x.data, f.out.data, f.stats})
    if (!needed) return "x, the output, the statistics or a weight is null";
  if (problem.dtype != DType::bf16 && problem.dtype != DType::f16) return "x is neither bfloat16 nor float16";
  if (!is_known(problem.squash)) return "the squash is neither tanh nor sigmoid";
  if (!problem.channels_last) return "x is not channels_last";
  if (s.channels < 1 || s.channels % kTileChannels != 0) return "the number of channels is not a multiple of 64";
  if (s.reduced < 1 || s.reduced > 256) return "the reduced width is not between 1 and 256";
  if (!aligned(problem, f.x, 8) || !aligned(problem, f.out, 8) || (f.residual.data && !aligned(problem, f.residual, 8)))
    return "x, the residual or the output is not aligned to 16 bytes at every pixel";
  if (!is_aligned(w.w_shrink) || !is_aligned(w.w_expand)) return "w_shrink or w_expand is not aligned to 16 bytes";
  if (!is_hopper()) return "the GPU is not of compute capability 9.0, or there is no code for 90a";
  if (s.images > INT32_MAX / 8) return "there are more images than launches take clusters";
  if (s.pixels < 4) return "an image has fewer pixels than a cluster has blocks";
  if (cluster_of(s) == 0) return "an image does not fit into the shared memory of a cluster";
  return nullptr;
}

int64_t cluster_workspace(const Problem& problem) {
  return ceil_div(padded_reduced(problem.shape) * problem.shape.channels * 2, 256) * 256;
}

void forward_in_cluster(const Problem& problem, const Forward& f, const Execution& execution) {
  const Shape& s = problem.shape;
  if (s.images == 0) return;
  if (const char* reason = why_not_in_cluster(problem, f))
    throw std::invalid_argument(std::string("gala::cuda: ") + reason);
  const Plan plan(s, cluster_of(s));
  ImageParams p{};
  p.x = row_map(problem, f.x);
  p.residual = row_map(problem, f.residual);
  p.out = row_map(problem, f.out);
  p.weights = problem.weights;
  p.stats = static_cast<float*>(f.stats);
  p.map = static_cast<float*>(f.map);
  p.relu_mask = reinterpret_cast<uint32_t*>(f.relu_mask);
  p.channels = static_cast<int>(s.channels);
  p.pixels = static_cast<int>(s.pixels);
  p.reduced = static_cast<int>(s.reduced);
  p.cluster = plan.cluster;
  p.stages = plan.stages;
  p.passes = plan.passes;
  p.squash = problem.squash;
  p.at = plan.at;
  problem.dtype == DType::bf16 ? run<bf16>(problem, p, execution) : run<f16>(problem, p, execution);
}

}  // namespace gala::cuda

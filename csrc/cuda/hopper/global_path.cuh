// The global path: each block of the cluster pools its pixels, then computes its part of p, of z and of the gates and
// sends it to all blocks.
#pragma once

#include "image.cuh"

namespace gala::cuda {

GALA_DEVICE int global_warp() { return warp() - kLocalWarps; }

// All warps of the global path in the cluster wait for each other.
GALA_DEVICE void meet_peers(const ImageParams& p, const Block& block, int parity) {
  warp_barrier();
  if (lane() < p.cluster) arrive_with_writes(block.exchange, lane());
  wait_for_peers(block.exchange, parity);
}

GALA_DEVICE void send_to_all(float* shared, float value, int cluster) {
  for (int rank = 0; rank < cluster; ++rank) store_peer(shared, rank, value);
}

// Sums the block's pixels into [groups, C].
template <class T>
GALA_DEVICE void pool(const ImageParams& p, const Block& block, const Shares& shares) {
  for (int share = global_warp(); share < shares.count(); share += kGlobalWarps) {
    const int slice = share % shares.slices, group = share / shares.slices;
    const int channel = slice * kSliceChannels + lane() * 8;
    wait_for(block.arrived + slice, 0);
    if (channel >= p.channels) continue;
    float sums[8] = {};
#pragma unroll 4
    for (int row = group; row < block.rows.size(); row += shares.groups) {
      float values[8];
      unpack<T>(load_shared(block.row<Packed<T, 8>>(p, row, channel)), values);
      GALA_UNROLL for (int i = 0; i < 8; ++i) sums[i] += values[i];
    }
    GALA_UNROLL for (int i = 0; i < 8; ++i)
        store_shared(block.at(p.at.sums) + group * p.channels + channel + i, sums[i]);
  }
}

// Computes the block's part of p from the sums of all blocks.
GALA_DEVICE void mean(const ImageParams& p, const Block& block, int groups, float* stats) {
  const Part mine(p.channels, block.rank, p.cluster);
  for (int c = mine.begin + thread_index() - 32 * kLocalWarps; c < mine.end; c += 32 * kGlobalWarps) {
    float sum = 0.0f;
    for (int rank = 0; rank < p.cluster; ++rank)
      for (int group = 0; group < groups; ++group) sum += load_peer(block.at(p.at.sums) + group * p.channels + c, rank);
    sum /= static_cast<float>(p.pixels);
    store_global(stats + c, sum);
    send_to_all(block.at(p.at.p) + c, sum, p.cluster);
  }
}

// Calls each(row, sum) with the products of w [rows, depth] and from [depth], for the rows of `mine`. A warp takes
// several rows at once, so that enough reads of w are in flight.
template <int width, class Each>
GALA_DEVICE void multiply_rows(const void* w, int depth, const float* from, const Part& mine, const Each& each) {
  constexpr int kRows = 8;
  using Vector = Vec<float, width>;
  for (int first = mine.begin + global_warp() * kRows; first < mine.end; first += kGlobalWarps * kRows) {
    const float* rows[kRows];
    GALA_UNROLL for (int i = 0; i < kRows; ++i) rows[i] =
        static_cast<const float*>(w) + int64_t{lesser(first + i, mine.end - 1)} * depth;
    float sums[kRows] = {};
#pragma unroll 2
    for (int k = lane() * width; k < depth; k += 32 * width) {
      const Vector factor = load_shared(reinterpret_cast<const Vector*>(from + k));
      Vector weights[kRows];
      GALA_UNROLL for (int i = 0; i < kRows; ++i) weights[i] =
          load_global(reinterpret_cast<const Vector*>(rows[i] + k));
      GALA_UNROLL for (int i = 0; i < kRows * width; ++i) sums[i / width] =
          std::fma(factor.at[i % width], weights[i / width].at[i % width], sums[i / width]);
    }
    const float sum = sum_over_lanes(sums);
    const int row = first + lane() * kRows / 32;
    if (lane() % (32 / kRows) == 0 && row < mine.end) each(row, sum);
  }
}

// What the four warps of the global path do. The gates are complete after the cluster's next barrier.
template <class T>
GALA_DEVICE void global_path(const ImageParams& p, const Block& block) {
  const Shares shares(block.slices, kGlobalWarps);
  float* stats = p.stats + block.image * (int64_t{p.pixels} + p.channels + p.reduced) + p.pixels;
  pool<T>(p, block, shares);
  meet_peers(p, block, 0);
  mean(p, block, shares.groups, stats);
  meet_peers(p, block, 1);
  const auto bias = [](const void* of, int i) { return of ? load_global(static_cast<const float*>(of) + i) : 0.0f; };
  const Part reduced(p.reduced, block.rank, p.cluster), channels(p.channels, block.rank, p.cluster);
  multiply_rows<4>(p.weights.w_shrink, p.channels, block.at(p.at.p), reduced, [&](int r, float sum) {
    const float z = sum + bias(p.weights.b_w_shrink, r);
    store_global(stats + p.channels + r, z);
    send_to_all(block.at(p.at.z) + r, relu(z), p.cluster);
  });
  meet_peers(p, block, 0);
  const auto gate = [&](int c, float sum) {
    const float g = sum + bias(p.weights.b_w_expand, c), a = load_global(static_cast<const float*>(p.weights.a) + c);
    float* alpha = block.at(p.at.gates) + c;
    send_to_all(alpha, a * g, p.cluster);
    send_to_all(alpha + p.channels, std::fma(load_global(static_cast<const float*>(p.weights.m) + c), g, a), p.cluster);
  };
  if (p.reduced % 4 == 0) multiply_rows<4>(p.weights.w_expand, p.reduced, block.at(p.at.z), channels, gate);
  else multiply_rows<1>(p.weights.w_expand, p.reduced, block.at(p.at.z), channels, gate);
}

}  // namespace gala::cuda

// The local path, h = x v_shrink^T, its ReLU mask and s = relu(h) v_collapse, and the copies that feed it.
#pragma once

#include "image.cuh"

namespace gala::cuda {

template <int padded>  // R, padded to the size that the kernel is compiled for
constexpr int kTileBytes = padded * kLineBytes;

// Queues the copy of the block's part of a tile of weights to all blocks of the cluster.
template <int padded>
GALA_DEVICE void fetch_weights(const ImageParams& p, const Block& block, int tile, int stage) {
  const int bytes = kTileBytes<padded> / p.cluster, part = block.rank * bytes;
  arrive_expecting(block.full + stage, kTileBytes<padded>);
  copy_bulk_to_all(block.shared + stage * kTileBytes<padded> + part,
                   p.packed + int64_t{tile} * kTileBytes<padded> + part, bytes, block.full + stage, p.cluster);
}

GALA_DEVICE void fetch_pixels(const ImageParams& p, const Block& block) {
  const char* x = static_cast<const char*>(p.x.data) + (block.image * p.x.image_stride) * 2;
  for (int slice = 0; slice < block.slices; ++slice) {
    const int channel = slice * kSliceChannels, bytes = lesser(kSliceChannels, p.channels - channel) * 2;
    if (lane() == 0) arrive_expecting(block.arrived + slice, block.rows.size() * bytes);
    for (int row = lane(); row < block.rows.size(); row += 32)
      copy_bulk(block.at<char>(p.at.x + row * block.pitch + channel * 2),
                x + ((block.rows.begin + row) * p.x.row_stride + channel) * 2, bytes, block.arrived + slice);
  }
}

// What the warp does that queues the copies.
template <int padded>
GALA_DEVICE void fetch(const ImageParams& p, const Block& block) {
  const int tiles = p.channels / kTileChannels, steps = p.passes * tiles;
  const int first = lesser(steps, p.stages);
  if (lane() == 0)
    for (int step = 0; step < first; ++step) fetch_weights<padded>(p, block, step % tiles, step);
  warp_barrier();
  fetch_pixels(p, block);
  if (lane() == 0) {
    Ring ring;
    for (int step = first; step < steps; ++step) {
      wait_for(block.empty + ring.stage, ring.parity);
      fetch_weights<padded>(p, block, step % tiles, ring.stage);
      ring.next(p.stages);
    }
  }
  warp_barrier();
}

// Loads the left operands of a tile: 16 pixels of the warp from row `row` on. The last row stands in for rows beyond
// it.
GALA_DEVICE void load_pixels(uint32_t (&to)[4][4], const ImageParams& p, const Block& block, int row, int tile) {
  const int from = lesser(row + lane() % 16, block.rows.size() - 1);
  GALA_UNROLL for (int k = 0; k < 4; ++k)
      load_matrix_x4(to[k], block.row<uint16_t>(p, from, tile * kTileChannels + k * 16 + lane() / 16 * 8));
}

// Takes the warp's part of the hidden layer before bias and ReLU: 16 pixels from `row` on, and the hidden units from
// `first` on. Writes its ReLU mask, and its part of the local map into s.
template <int n>
GALA_DEVICE void collapse(const ImageParams& p, const Block& block, const float (&hidden)[n], int row, int first,
                          float* s) {
  constexpr int kWords = n / 16;
  const float* bias = static_cast<const float*>(p.weights.b_v_shrink);
  float sums[2] = {};
  uint32_t words[2][kWords] = {};
  GALA_UNROLL for (int i = 0; i < n / 2; ++i) {
    const int col = i / 2 * 8 + lane() % 4 * 2 + i % 2, r = first + col;
    if (r >= p.reduced) continue;
    const float b = bias ? load_global(bias + r) : 0.0f;
    const float v = load_global(static_cast<const float*>(p.weights.v_collapse) + r);
    GALA_UNROLL for (int j = 0; j < 2; ++j) {
      const float h = hidden[i / 2 * 4 + j * 2 + i % 2] + b;
      const bool on = !(h <= 0.0f);
      sums[j] += (on ? h : 0.0f) * v;
      words[j][i / 8] |= (on ? 1u : 0u) << col % 32;
    }
  }
  const int all_words = (p.reduced + 31) / 32;
  GALA_UNROLL for (int j = 0; j < 2; ++j) {
    const int at = row + j * 8 + lane() / 4;
    for (int mask = 1; mask < 4; mask *= 2) sums[j] += shuffle_xor(sums[j], mask);
    if (lane() % 4 == 0) store_shared(s + at, sums[j]);
    GALA_UNROLL for (int i = 0; i < kWords; ++i) {
      for (int mask = 1; mask < 4; mask *= 2) words[j][i] |= shuffle_xor(words[j][i], mask);
      const int word = first / 32 + i;
      if (p.relu_mask && lane() % 4 == i && at < block.rows.size() && word < all_words)
        store_global(p.relu_mask + (block.image * p.pixels + block.rows.begin + at) * all_words + word, words[j][i]);
    }
  }
}

// What the two warpgroups of the local path do, each for half of the hidden layer: the tensor cores work for one while
// the other loads its pixels.
template <class T, int padded>
GALA_DEVICE void local_path(const ImageParams& p, const Block& block) {
  constexpr int kColumns = padded / 2;
  const int half = warp() / 4, tiles = p.channels / kTileChannels;
  const char* weights = block.shared + half * kColumns * kLineBytes;
  float* s = block.at(p.at.s) + half * p.passes * kTileRows;
  Ring ring;
  for (int pass = 0; pass < p.passes; ++pass) {
    const int row = pass * kTileRows + warp() % 4 * 16;
    float sums[kColumns / 2] = {};
    GALA_ROLL for (int tile = 0; tile < tiles; ++tile) {
      uint32_t pixels[4][4];
      wait_for(block.arrived + tile * kTileChannels / kSliceChannels, 0);
      load_pixels(pixels, p, block, row, tile);
      wait_for(block.full + ring.stage, ring.parity);
      products_begin();
      GALA_UNROLL for (int k = 0; k < 4; ++k)
          multiply_tile(sums, pixels[k], tile_operand(weights + ring.stage * kTileBytes<padded> + k * 32), T{});
      products_commit();
      products_wait(sums);
      if (lane() < p.cluster) arrive_at(block.empty + ring.stage, lane());
      ring.next(p.stages);
    }
    collapse(p, block, sums, row, half * kColumns, s);
  }
}

}  // namespace gala::cuda

// One image in the shared memory of a cluster: each block holds some of its pixels, with all channels.
//
// A block's warps: two warpgroups walk the local path on the tensor cores, four warps the global path, and one keeps
// the copies coming. Then all of them scale.
#pragma once

#include <hopper/primitives.cuh>
#include <primitives.cuh>

#include "../sweep.cuh"

namespace gala::cuda {

constexpr int kLocalWarps = 8, kGlobalWarps = 4, kImageWarps = kLocalWarps + kGlobalWarps + 1;
constexpr int kImageThreads = 32 * kImageWarps;
constexpr int kTileRows = 64;  // pixels of a product
constexpr int kTileChannels = 64, kLineBytes = 2 * kTileChannels;  // depth of a tile of weights
constexpr int kSliceChannels = 256;  // of x that arrive together: 32 lanes' vectors of 16 bytes

GALA_DEVICE int lesser(int a, int b) { return a < b ? a : b; }

// Where a block's shared memory has what, in bytes from its begin; tiles of weights come first.
struct Layout {
  int x;  // [most rows, channels and 16 bytes]: 8 rows of a matrix lie in different banks
  int sums;  // [groups, C] of the block's pixels
  int p, z, gates;  // [C], relu(z) [R], [2, C] of the image
  int s;  // [2, passes * kTileRows] parts of the local map
  int squares;  // [slices, most rows] of the attention
  int barriers;
  int bytes;
};

struct ImageParams {
  Plane x, residual, out;  // residual.data may be null
  const char* packed;  // [C / kTileChannels, hidden, kLineBytes]
  Weights weights;
  float *stats, *map;  // map may be null
  uint32_t* relu_mask;  // or null
  int channels, pixels, reduced, cluster;
  int stages, passes;  // of the ring of weights; of the weights over the pixels
  bool tanh;
  Layout at;
};

// Which part of `count` block `rank` of the cluster has.
struct Part {
  int begin, end;
  GALA_DEVICE Part(int count, int rank, int cluster)
      : begin(count * rank / cluster), end(count * (rank + 1) / cluster) {}
  GALA_DEVICE int size() const { return end - begin; }
};

// A block's view of its image.
struct Block {
  int rank, pitch, slices;  // bytes of a row
  int64_t image;
  Part rows;
  char* shared;
  Barrier *full, *empty, *arrived, *exchange;  // [stages] twice, [slices], one

  GALA_DEVICE explicit Block(const ImageParams& p)
      : rank(cluster_rank()), pitch(p.channels * 2 + 16), slices((p.channels + kSliceChannels - 1) / kSliceChannels),
        image(block_x() / p.cluster), rows(p.pixels, rank, p.cluster), shared(tile_memory<char>()),
        full(reinterpret_cast<Barrier*>(shared + p.at.barriers)), empty(full + p.stages), arrived(empty + p.stages),
        exchange(arrived + slices) {}

  template <class T = float>
  GALA_DEVICE T* at(int place) const {
    return reinterpret_cast<T*>(shared + place);
  }
  template <class T>
  GALA_DEVICE const T* row(const ImageParams& p, int row, int channel) const {
    return at<const T>(p.at.x + row * pitch + channel * 2);
  }
};

// How some warps share a block's pixels: each takes a slice of channels, 8 of them a lane, and every `groups`-th row.
struct Shares {
  int slices, groups;
  GALA_DEVICE Shares(int slices, int warps) : slices(slices), groups(warps < 2 * slices ? 1 : warps / slices) {}
  GALA_DEVICE int count() const { return slices * groups; }
};

// Steps through the stages of the ring; `parity` as wait_for takes it.
struct Ring {
  int stage = 0, parity = 0;
  GALA_DEVICE void next(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

}  // namespace gala::cuda

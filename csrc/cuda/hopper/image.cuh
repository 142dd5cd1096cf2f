// How one image lies in the shared memory of a cluster: each block holds some of its pixels, with all channels.
//
// Of a block's warps two warpgroups compute the local path on the tensor cores, four warps compute the global path, and
// one queues the copies. Then all of them scale.
#pragma once

#include <hopper/primitives.cuh>
#include <primitives.cuh>

#include "../row_iterator.cuh"

namespace gala::cuda {

constexpr int kLocalWarps = 8, kGlobalWarps = 4, kImageWarps = kLocalWarps + kGlobalWarps + 1;
constexpr int kImageThreads = 32 * kImageWarps;
constexpr int kTileRows = 64;  // pixels of a product
constexpr int kTileChannels = 64, kLineBytes = 2 * kTileChannels;  // depth of a tile of weights
constexpr int kSliceChannels = 256;  // channels of x that arrive together: one vector of 16 bytes for each lane

// Where each array lies in a block's shared memory, in bytes from its beginning; the tiles of weights come first.
struct Layout {
  int x;  // [most rows, C], rows 16 bytes longer than C channels, so that 8 rows lie in different banks
  int sums;  // [groups, C] over the block's pixels
  int p, z, gates;  // [C], relu(z) [R], [2, C] of the image
  int s;  // [2, passes * kTileRows], the two parts of the local map
  int squares;  // [slices, most rows] of the attention
  int barriers;
  int bytes;
};

struct ImageParams {
  RowMap x, residual, out;  // residual.data may be null
  const char* packed;  // [C / kTileChannels, padded R, kLineBytes]
  Weights weights;
  float *stats, *map;  // map may be null
  uint32_t* relu_mask;  // or null
  int channels, pixels, reduced, cluster;
  int stages, passes;  // stages of the ring of weights; how often the weights pass over the block's pixels
  Squash squash;
  Layout at;
};

// The part [begin, end) of `count` things that block `rank` of the cluster takes.
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

// How some warps share a block's pixels: each takes a slice of the channels, 8 for each lane, and every `groups`-th
// row.
struct Shares {
  int slices, groups;
  GALA_DEVICE Shares(int slices, int warps) : slices(slices), groups(warps < 2 * slices ? 1 : warps / slices) {}
  GALA_DEVICE int count() const { return slices * groups; }
};

// Steps through the stages of the ring of weights; `parity` is what wait_for takes.
struct Ring {
  int stage = 0, parity = 0;
  GALA_DEVICE void next(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

}  // namespace gala::cuda

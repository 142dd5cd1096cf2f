// Tiles of feature maps and of packed weights in shared memory, and the pipeline that fills them.
//
// A tile consists of lines of neighbouring elements: with channels_last a line is some channels of one pixel, else some
// pixels of one channel. The pixels of all images are numbered in a row, so a tile may span several images.
#pragma once

#include <primitives.cuh>

#include "element_types.cuh"
#include "launchers.h"

namespace gala::cuda {

constexpr int kTileThreads = 256;
constexpr int kTileWarps = kTileThreads / 32;
constexpr int kStepBytes = 128;  // the depth of one step of a product, as bytes of its operands
template <class T>
constexpr int kDepth = kStepBytes / static_cast<int>(sizeof(T));
constexpr int kInstructions = 4;  // along the depth of a step
constexpr int kVectorBytes = 16;
template <class T>
constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));

// Divides numbers below 2^31 by a constant, with one multiplication and one shift.
struct Divider {
  uint32_t divisor, multiplier, shift;
  GALA_DEVICE uint32_t divide(uint32_t value) const { return multiply_high(2 * value, multiplier) >> shift; }
};

inline Divider divider(int64_t divisor) {
  uint32_t shift = 0;
  while ((int64_t{1} << shift) < divisor) ++shift;
  const uint64_t power = uint64_t{1} << (31 + shift), by = static_cast<uint64_t>(divisor);
  return {static_cast<uint32_t>(divisor), static_cast<uint32_t>((power + by - 1) / by), shift};
}

// An image and one of its pixels. All images have fewer than 2^31 pixels together.
struct ImagePixel {
  uint32_t image, pixel;

  GALA_DEVICE static ImagePixel of_row(uint32_t row, const Divider& pixels) {
    return ImagePixel{0, 0}.after(row, pixels);
  }
  GALA_DEVICE ImagePixel after(uint32_t rows, const Divider& pixels) const {
    const uint32_t images = pixels.divide(pixel + rows);
    return {image + images, pixel + rows - images * pixels.divisor};
  }
};

// A feature map; strides in bytes.
struct MapView {
  char* data;
  int64_t image_stride, line_stride;  // 0 where there is one image or line: addresses beyond it are aligned as well
  int channels;
  int width;  // bytes of the widest vectors that are aligned and do not straddle the end of a line
  Divider pixels;
};

// The place of 16-byte vector `vector` of a line is `vector` ^ swizzle(line). So one vector each of eight lines in a
// row lies in different banks, and two neighbouring vectors each of four lines do too.
GALA_DEVICE int swizzle(int line) { return (line & 3) << 1 | (line >> 2 & 1); }

template <int line_bytes>
GALA_DEVICE char* tile_at(char* tile, int line, int byte) {
  static_assert(line_bytes % 128 == 0);
  return tile + line * line_bytes + (byte ^ swizzle(line) * kVectorBytes);
}
template <int line_bytes>
GALA_DEVICE const char* tile_at(const char* tile, int line, int byte) {
  return tile_at<line_bytes>(const_cast<char*>(tile), line, byte);
}

// Which part of a map a tile is: its first pixel, how many pixels from there on exist, and its first channel.
struct TilePlace {
  ImagePixel first;
  int rows, channel;
};

// Where in global memory a byte of a tile comes from, and whether the map has it.
struct Source {
  const char* from;
  bool inside;
};

template <class T, bool channels_last>
GALA_DEVICE Source source(const MapView& map, const TilePlace& place, int line, int byte) {
  const int element = byte / static_cast<int>(sizeof(T));
  const uint32_t row = channels_last ? line : element, channel = place.channel + (channels_last ? element : line);
  const ImagePixel at = ImagePixel{0, place.first.pixel}.after(row, map.pixels);
  const int64_t along_lines = channels_last ? at.pixel : channel, along_line = channels_last ? channel : at.pixel;
  const char* image = map.data + place.first.image * map.image_stride;
  return {image + at.image * map.image_stride + along_lines * map.line_stride +
              along_line * static_cast<int64_t>(sizeof(T)),
          static_cast<int>(row) < place.rows && static_cast<int>(channel) < map.channels};
}

// How the tile's vectors of `bytes` bytes are dealt out to the block's threads: a thread's i-th vector is at byte(i) of
// line(i), and it handles kAtOnce of its kEach vectors at a time: more of the narrow ones, but not so many that the
// registers run out.
template <int lines, int line_bytes, int bytes>
struct Deal {
  static constexpr int kPerLine = line_bytes / bytes, kEach = lines * kPerLine / kTileThreads;
  static constexpr int kMost = bytes == 2 ? 16 : 4, kSome = bytes == 2 ? kEach / 2 : kEach;
  static constexpr int kAtOnce = kSome < kMost ? kSome : kMost;
  static_assert(kEach * kTileThreads == lines * kPerLine);
  GALA_DEVICE static int line(int i) { return static_cast<int>(index(i) / kPerLine); }
  GALA_DEVICE static int byte(int i) { return static_cast<int>(index(i) % kPerLine) * bytes; }

 private:
  GALA_DEVICE static unsigned index(int i) { return static_cast<unsigned>(thread_index() + i * kTileThreads); }
};

template <class T, bool channels_last, int lines, int line_bytes, int bytes>
GALA_DEVICE void load_vectors(char* tile, const MapView& map, const TilePlace& place) {
  using Dealt = Deal<lines, line_bytes, bytes>;
  GALA_ROLL
  for (int first = 0; first < Dealt::kEach; first += Dealt::kAtOnce) {
    if constexpr (bytes >= 4) {
      GALA_UNROLL
      for (int i = first; i < first + Dealt::kAtOnce; ++i) {
        const Source at = source<T, channels_last>(map, place, Dealt::line(i), Dealt::byte(i));
        copy_async<bytes>(tile_at<line_bytes>(tile, Dealt::line(i), Dealt::byte(i)), at.from, at.inside);
      }
    } else if constexpr (bytes == sizeof(T)) {  // too narrow for asynchronous copies
      T values[Dealt::kAtOnce] = {};
      GALA_UNROLL
      for (int i = 0; i < Dealt::kAtOnce; ++i) {
        const Source at = source<T, channels_last>(map, place, Dealt::line(first + i), Dealt::byte(first + i));
        if (at.inside) values[i] = load_global(reinterpret_cast<const T*>(at.from));
      }
      GALA_UNROLL
      for (int i = 0; i < Dealt::kAtOnce; ++i) {
        char* to = tile_at<line_bytes>(tile, Dealt::line(first + i), Dealt::byte(first + i));
        store_shared(reinterpret_cast<T*>(to), values[i]);
      }
    }
  }
}

// Queues the copy of a tile into shared memory, with zeros where the map has no elements.
template <class T, bool channels_last, int lines, int line_bytes>
GALA_DEVICE void load_tile(char* tile, const MapView& map, const TilePlace& place) {
  switch (map.width) {
    case 16: return load_vectors<T, channels_last, lines, line_bytes, 16>(tile, map, place);
    case 8: return load_vectors<T, channels_last, lines, line_bytes, 8>(tile, map, place);
    case 4: return load_vectors<T, channels_last, lines, line_bytes, 4>(tile, map, place);
    case 2: return load_vectors<T, channels_last, lines, line_bytes, 2>(tile, map, place);
  }
}

template <class T, bool channels_last, int lines, int line_bytes, int bytes>
GALA_DEVICE void store_vectors(const char* tile, const MapView& map, const TilePlace& place) {
  using Dealt = Deal<lines, line_bytes, bytes>;
  using V = Vec<uint16_t, bytes / 2>;
  GALA_ROLL
  for (int first = 0; first < Dealt::kEach; first += Dealt::kAtOnce) {
    GALA_UNROLL
    for (int i = first; i < first + Dealt::kAtOnce; ++i) {
      const Source at = source<T, channels_last>(map, place, Dealt::line(i), Dealt::byte(i));
      const char* from = tile_at<line_bytes>(tile, Dealt::line(i), Dealt::byte(i));
      if (at.inside)
        store_global(reinterpret_cast<V*>(const_cast<char*>(at.from)), load_shared(reinterpret_cast<const V*>(from)));
    }
  }
}

// Writes those elements of a tile that the map has.
template <class T, bool channels_last, int lines, int line_bytes>
GALA_DEVICE void store_tile(const char* tile, const MapView& map, const TilePlace& place) {
  switch (map.width) {
    case 16: return store_vectors<T, channels_last, lines, line_bytes, 16>(tile, map, place);
    case 8: return store_vectors<T, channels_last, lines, line_bytes, 8>(tile, map, place);
    case 4: return store_vectors<T, channels_last, lines, line_bytes, 4>(tile, map, place);
    case 2: return store_vectors<T, channels_last, lines, line_bytes, 2>(tile, map, place);
  }
}

// Queues the copy of one step of packed weights [rows, steps * kStepBytes]: `lines` rows from `first` on.
template <int lines>
GALA_DEVICE void load_packed(char* tile, const char* packed, int64_t row_bytes, int first, int rows, int step) {
  using Dealt = Deal<lines, kStepBytes, kVectorBytes>;
  constexpr int kApart = kTileThreads / Dealt::kPerLine;  // lines
  const int byte = Dealt::byte(0);
  const char* from = packed + (first + Dealt::line(0)) * row_bytes + step * int64_t{kStepBytes} + byte;
  GALA_UNROLL
  for (int i = 0; i < Dealt::kEach; ++i, from += kApart * row_bytes) {
    const int line = Dealt::line(0) + i * kApart;
    copy_async<kVectorBytes>(tile_at<kStepBytes>(tile, line, byte), from, first + line < rows);
  }
}

// Calls load(step, stage) for each step from 0 on, and for some beyond the last, and compute(step, stage) for each step
// as soon as the copies that load() queued for it have arrived. load_once() is called early, for what is needed after
// the last step. On return all copies are done, and all threads are past the last step.
template <class Load, class LoadOnce, class Compute>
GALA_DEVICE void pipeline(int steps, int stages, const Load& load, const LoadOnce& load_once, const Compute& compute) {
  GALA_ROLL
  for (int step = 0; step < stages - 1; ++step) {
    load(step, step);
    copy_commit();
  }
  load_once();
  GALA_ROLL
  for (int step = 0, stage = 0; step < steps; ++step) {
    stages == 2 ? copy_wait<0>() : stages == 3 ? copy_wait<1>() : copy_wait<2>();
    block_barrier();  // the step's copies are there, and the stage of the step before is free
    load(step + stages - 1, stage == 0 ? stages - 1 : stage - 1);
    copy_commit();
    compute(step, stage);
    stage = stage + 1 < stages ? stage + 1 : 0;
  }
  copy_wait<0>();
  block_barrier();
}

// ---- host

// Bytes of a packed row of `depth` weights.
inline int64_t packed_row_bytes(const Problem& problem, int64_t depth) {
  return ceil_div(depth * element_bytes(problem.dtype), kStepBytes) * kStepBytes;
}

inline MapView map_view(const Problem& problem, const FeatureMap& map) {
  const Shape& s = problem.shape;
  const int64_t size = element_bytes(problem.dtype), image_stride = map.image_stride * size;
  const int64_t line_stride = (problem.channels_last ? map.pixel_stride : map.channel_stride) * size;
  const int64_t length = problem.channels_last ? s.channels : s.pixels, lines = s.channels * s.pixels / length;
  char* data = static_cast<char*>(map.data);
  int64_t width = kVectorBytes;
  while (reinterpret_cast<uintptr_t>(data) % width != 0 || length * size % width != 0 ||
         (lines > 1 && line_stride % width != 0) || (s.images > 1 && image_stride % width != 0))
    width /= 2;
  return {data,
          s.images > 1 ? image_stride : 0,
          lines > 1 ? line_stride : 0,
          static_cast<int>(s.channels),
          static_cast<int>(width),
          divider(s.pixels)};
}

// How many stages of a pipeline, from 2 to `most`, fit into shared memory next to `fixed` bytes, where `blocks` blocks
// share a multiprocessor.
inline int stages_that_fit(int stage_bytes, int fixed, int blocks, int most) {
  const int fit = (shared_limit() / blocks - fixed) / stage_bytes;
  return fit < 2 ? 2 : fit < most ? fit : most;
}

}  // namespace gala::cuda

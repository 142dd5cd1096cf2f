// Runs a grid of CUDA threads as fibers. Blocks, or clusters of blocks, run one after the other in random order. Their
// threads take turns: a thread's turn ends where it waits for others. Whatever is not allowed stops the launch with a
// std::runtime_error that names kernel, block, thread and line.
#pragma once

#include <any>
#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>

namespace gala::shim {

constexpr int WARP = 32;

using Site = std::source_location;

struct Dim {
  int64_t x, y, z;
};

// What a kernel can ask about where it runs.
struct Position {
  Dim block, blocks;
  int thread, threads;
  char* shared;
  size_t shared_bytes;
  int rank, cluster;  // the block's number in its cluster, and how many blocks that has
};
extern Position position;

struct Device {  // what a test may choose
  uint64_t seed = 0;  // of the random order of threads and blocks; 0: in order
  int shared_limit = 99 << 10;  // bytes for each block, as on sm_86
};
extern Device device;
extern int64_t most_blocks;  // how many blocks, or clusters, of a launch run, with the first and the last; 0: all

void launch(const char* name, Dim blocks, int threads, int shared_bytes, void (*body)(const void*), const void* context,
            int cluster = 1);

[[noreturn]] void fail(const std::string& what);  // with the running thread and the line where it was last seen

void stop(const std::string& what);  // names no thread

void check_global(const void* address, size_t bytes, size_t alignment, bool write, Site site);
void check_aligned(const void* address, size_t alignment, Site site);  // for zeros that are copied from there
void check_shared(const void* address, size_t bytes, size_t alignment, Site site);

// Waits until all threads of the block, or of the warp, are at the same place. The last to arrive calls
// together(mine of lane 0, mine of lane 1, ...). Only a barrier orders memory accesses.
void meet_block(Site site);
void meet_cluster(Site site);
void meet_warp(const char* what, bool barrier, Site site, void* mine = nullptr, void (*together)(void**) = nullptr);

// cp.async. The copy is performed when the thread that issued it waits for it.
struct Copy {
  uint32_t* to;
  const uint32_t* from;
  int words;
  bool inside;
};
void issue(const Copy&);
void commit();
bool next_due(int pending_groups,
              Copy& copy);  // takes the oldest copy that a wait for all but so many groups has to perform

// The same place in the shared memory of another block of the cluster; for an access of so many bytes, or unchecked.
bool has_ended(int rank);
char* in_peer(const void* shared, int rank, size_t bytes, Site site);
char* in_block(const void* shared, int rank);

// The running thread waits until someone wakes all that wait for the same.
void park(const void* on, Site site);
void wake(const void* on);
// A copy that lands at some later time, by itself.
struct Flight {
  void (*land)(const Flight&);
  void* to;
  const void* from;
  int bytes;
  void* barrier;  // in the shared memory of block `rank`, as `to`
  int rank;
};
void later(const Flight&);
// What instructions remember for the running thread.
std::any& kept();
// Tells ThreadSanitizer that what came before the release of an address comes before what follows an acquire of it.
void release_to(void* address);
void acquire_from(void* address);

}  // namespace gala::shim

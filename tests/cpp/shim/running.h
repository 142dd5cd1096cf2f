// The launch that runs: its threads, and what each waits for. Of scheduler.cpp, which gives them their turns, and of
// thread.cpp, where they leave it.
#pragma once

#include <any>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "scheduler.h"

namespace gala::shim {

constexpr size_t COPIES = 128;  // of a thread, that wait to be performed
constexpr size_t FLIGHTS = 1 << 14;  // of a cluster
constexpr size_t BARRIERS = 1 << 10;  // of a cluster

// Threads that wait for each other.
struct Team {
  const char* name;
  int first, size;
  int arrived = 0;
  const char* what = nullptr;
  Site site = {};
  bool odd = false;
  char order[2] = {};  // what ThreadSanitizer knows barriers by: in turns, as the next may begin before all have left
};

struct Issued {
  Copy copy;
  int64_t group;
};

struct Thread {
  std::unique_ptr<Fiber> fiber;
  Site site = {};  // where it was last seen
  bool ended = false;
  std::unique_ptr<Issued[]> copies = std::make_unique_for_overwrite<Issued[]>(COPIES);  // round and round
  size_t issued = 0, performed = 0;
  int64_t group = 0;  // that the next copy belongs to
  std::any kept = {};
};

struct MadeBarrier {
  void* at;
  int thread;  // that made it
  bool published;
};

using Writer = uint16_t;  // 1 and the index of a thread, or 0

// The blocks that run at the same time; what is of each thread or warp is counted through all of them.
struct Cluster {
  std::vector<Thread> threads = {};
  std::vector<Team> warps = {}, blocks = {};
  Team all = {};
  std::vector<Position> positions = {};  // of each block's first thread
  std::vector<void*> mine = {};  // what each thread brought to the meeting it waits at
  std::vector<int> ready = {};
  std::vector<std::pair<const void*, int>> parked = {};  // threads, and what each waits for
  std::vector<Flight> flights = {};
  std::vector<MadeBarrier> barriers = {};
  std::vector<std::vector<Writer>> writers = {};  // of each block's bytes, where no fence has followed
};

struct Launch {
  const char* name;
  void (*body)(const void*);
  const void* context;
  Fiber host;
  std::mt19937_64 random;
  std::string failure;
  uint32_t shared_alignment = 0, shared_base = 0;  // once a thread has asked for it
  char begin = 0, end = 0;  // what ThreadSanitizer knows the launch's two ends by
};

extern Launch* launched;  // and the blocks of it that run
extern Cluster* running;

int own_index();  // of the running thread in its cluster
Thread& self();
void leave();  // until it is its turn again
std::string text(Site site);

}  // namespace gala::shim

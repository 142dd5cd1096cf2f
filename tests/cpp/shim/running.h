// The state of the running launch: its threads, and what each of them waits for. scheduler.cpp gives the threads their
// turns; in thread.cpp they give their turn back.
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

constexpr size_t COPIES = 128;  // pending copies of a thread, at most
constexpr size_t FLIGHTS = 1 << 14;  // bulk copies under way in a cluster, at most
constexpr size_t BARRIERS = 1 << 10;  // barriers of a cluster, at most

// Threads that wait for each other.
struct Team {
  const char* name;
  int first, size;
  int arrived = 0;
  const char* what = nullptr;
  Site site = {};
  bool odd = false;
  char order[2] =
      {};  // addresses for ThreadSanitizer, used in turns, since the next meeting may begin before all have left
};

struct Issued {
  Copy copy;
  int64_t group;
};

struct Thread {
  std::unique_ptr<Fiber> fiber;
  Site site = {};  // where the thread was last seen
  bool ended = false;
  std::unique_ptr<Issued[]> copies = std::make_unique_for_overwrite<Issued[]>(COPIES);  // a ring
  size_t issued = 0, performed = 0;
  int64_t group = 0;  // to which the next copy belongs
  std::any kept = {};
};

struct MadeBarrier {
  void* at;
  int thread;  // the one that made it
  bool published;
};

using Writer = uint16_t;  // the index of a thread plus 1; 0: none

// The blocks that run at the same time. Threads and warps are numbered through all of them.
struct Cluster {
  std::vector<Thread> threads = {};
  std::vector<Team> warps = {}, blocks = {};
  Team all = {};
  std::vector<Position> positions = {};  // the first thread of each block
  std::vector<void*> mine = {};  // what each thread brought to the meeting it waits at
  std::vector<int> ready = {};
  std::vector<std::pair<const void*, int>> parked = {};  // threads, and what each waits for
  std::vector<Flight> flights = {};
  std::vector<MadeBarrier> barriers = {};
  std::vector<std::vector<Writer>> writers = {};  // who wrote each byte of each block without a fence since
};

struct Launch {
  const char* name;
  void (*body)(const void*);
  const void* context;
  Fiber host;
  std::mt19937_64 random;
  std::string failure;
  uint32_t shared_alignment = 0, shared_base = 0;  // 0 until a thread asks for shared memory
  char begin = 0, end = 0;  // addresses of the launch's begin and end for ThreadSanitizer
};

extern Launch* launched;
extern Cluster* running;

int own_index();  // the running thread's index in its cluster
Thread& self();
void leave();  // returns when it is the thread's turn again
std::string text(Site site);

}  // namespace gala::shim

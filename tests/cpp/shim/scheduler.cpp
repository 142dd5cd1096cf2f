#include "scheduler.h"

#include <signal.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <stdexcept>

#include "barrier.h"
#include "memory.h"
#include "running.h"
#include "shared.h"

namespace gala::shim {

Position position;
Device device;
int64_t most_blocks = 0;
Launch* launched = nullptr;
Cluster* running = nullptr;

namespace {

constexpr size_t STACK = 128 << 10;
constexpr std::ptrdiff_t GUARD = 4096;

void enter() {
  acquire_from(&launched->begin);
  launched->body(launched->context);
  Thread& me = self();
  if (me.performed < me.issued) fail("ends with asynchronous copies that it has not waited for; last seen");
  me.kept.reset();  // here, as ThreadSanitizer orders nothing of a thread before what the host does between blocks
  release_to(&launched->end);
  me.ended = true;
  leave();
  __builtin_unreachable();
}

void on_fault(int, siginfo_t* info, void*) {
  const auto offset = static_cast<char*>(info->si_addr) - position.shared;
  const bool shared = offset >= -GUARD && offset < static_cast<std::ptrdiff_t>(position.shared_bytes) + GUARD;
  fail("touches memory that is not its own, " +
       (shared ? std::to_string(offset) + " bytes into shared memory of " + std::to_string(position.shared_bytes)
               : whereabouts(info->si_addr)) +
       "; last seen");
}

// While it lives an access to a guard page ends the launch instead of the process.
class Trap {
 public:
  Trap() : stack(SIGSTKSZ + (64 << 10)) {
    stack_t own{};
    own.ss_sp = stack.data();
    own.ss_size = stack.size();
    sigaltstack(&own, &former_stack);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // it is never returned from
    sigaction(SIGSEGV, &action, &former);
  }
  ~Trap() {
    sigaction(SIGSEGV, &former, nullptr);
    sigaltstack(&former_stack, nullptr);
  }

 private:
  std::vector<char> stack;
  stack_t former_stack{};
  struct sigaction former{};
};

std::vector<int64_t> order_of(int64_t blocks) {
  if (most_blocks > 1 && blocks > most_blocks) {
    std::set<int64_t> some = {0, blocks - 1};
    while (std::ssize(some) < most_blocks)
      some.insert(static_cast<int64_t>(launched->random() % static_cast<uint64_t>(blocks)));
    return {some.begin(), some.end()};
  }
  std::vector<int64_t> turns(static_cast<size_t>(blocks));
  std::iota(turns.begin(), turns.end(), 0);
  if (device.seed) std::shuffle(turns.begin(), turns.end(), launched->random);
  return turns;
}

// With an odd seed the warp that ran last mostly goes on, so that it gets far ahead of others; with one that is 2
// modulo 4 the block does; else any thread.
int take_turn(std::vector<int>& ready) {
  const size_t size = ready.size();
  size_t at = device.seed ? launched->random() % size : 0;
  const int team = device.seed % 2 ? WARP : device.seed % 4 == 2 && position.cluster > 1 ? position.threads : 0;
  if (team && launched->random() % 64) {
    const auto same =
        std::find_if(ready.begin(), ready.end(), [team](int t) { return t / team == own_index() / team; });
    if (same != ready.end()) at = static_cast<size_t>(same - ready.begin());
  }
  const int thread = ready[at];
  ready.erase(ready.begin() + static_cast<std::ptrdiff_t>(at));
  return thread;
}

std::string stuck(const Cluster& cluster) {
  std::string what = "threads wait for others in vain:";
  auto add = [&](const Team& team) {
    if (team.arrived)
      what += " " + std::to_string(team.arrived) + " of " + std::to_string(team.size) + " at " + team.what + " of " +
              team.name + " " + std::to_string(team.first / WARP) + ", " + text(team.site) + ";";
  };
  add(cluster.all);
  for (const Team& team : cluster.blocks) add(team);
  for (const Team& team : cluster.warps) add(team);
  if (!cluster.parked.empty())
    what += " " + std::to_string(cluster.parked.size()) + " for a barrier's phase, the first at " +
            text(cluster.threads[static_cast<size_t>(cluster.parked[0].second)].site) + ";";
  const auto ended =
      std::count_if(cluster.threads.begin(), cluster.threads.end(), [](const Thread& t) { return t.ended; });
  return what + " " + std::to_string(ended) + " have ended";
}

// Lands one of the copies under way, with seed 0 the first.
void land_one(std::vector<Flight>& flights) {
  const auto at = flights.begin() + static_cast<std::ptrdiff_t>(device.seed ? launched->random() % flights.size() : 0);
  const Flight flight = *at;
  flights.erase(at);
  flight.land(flight);
}

// Copies land late, when no thread can go on, or at any other time.
void take_turns(Cluster& cluster, int threads) {
  while (launched->failure.empty() && !(cluster.ready.empty() && cluster.flights.empty())) {
    const bool now = cluster.ready.empty() || (device.seed && launched->random() % 64 == 0);
    if (now && !cluster.flights.empty()) {
      land_one(cluster.flights);
      continue;
    }
    const int turn = take_turn(cluster.ready);
    position = cluster.positions[static_cast<size_t>(turn / threads)];
    position.thread = turn % threads;
    launched->host.leave_for(*self().fiber);
  }
}

void run_cluster(const std::vector<Position>& positions, Pages& stacks) {
  const int threads = positions[0].threads, all = threads * static_cast<int>(positions.size());
  Cluster cluster;
  running = &cluster;
  cluster.positions = positions;
  cluster.all = {"cluster", 0, all};
  cluster.mine.resize(static_cast<size_t>(all));
  for (int t = 0; t < all; t += threads) cluster.blocks.push_back({"block", t, threads});
  for (int t = 0; t < all; t += WARP) cluster.warps.push_back({"warp", t, WARP});
  for (int t = 0; t < all; ++t) {
    cluster.threads.push_back({std::make_unique<Fiber>(stacks.begin() + static_cast<size_t>(t) * STACK, STACK, enter)});
    cluster.ready.push_back(t);
  }
  cluster.parked.reserve(static_cast<size_t>(all));  // threads allocate nothing that another one frees
  cluster.flights.reserve(FLIGHTS);
  cluster.barriers.reserve(BARRIERS);
  for (const Position& block : positions) cluster.writers.emplace_back(block.shared_bytes);
  take_turns(cluster, threads);
  const bool ended =
      std::all_of(cluster.threads.begin(), cluster.threads.end(), [](const Thread& t) { return t.ended; });
  if (launched->failure.empty()) launched->failure = ended ? why_unfinished() : stuck(cluster);
  end_counts();
  running = nullptr;
}

void check_limits(Dim blocks, int cluster, int threads, int shared_bytes) {
  constexpr int64_t most_x = INT32_MAX, most_y = 65535;
  if (blocks.x < 1 || blocks.y < 1 || blocks.z < 1 || blocks.x > most_x || blocks.y > most_y || blocks.z > most_y)
    throw std::runtime_error("no such grid: " + std::to_string(blocks.x) + " x " + std::to_string(blocks.y) + " x " +
                             std::to_string(blocks.z));
  if (cluster < 1 || cluster > 8 || blocks.x % cluster)
    throw std::runtime_error(std::to_string(blocks.x) + " blocks along x are not whole clusters of " +
                             std::to_string(cluster) + ", at most 8");
  if (threads < WARP || threads > 1024 || threads % WARP)
    throw std::runtime_error(std::to_string(threads) + " threads are not whole warps");
  if (shared_bytes < 0 || shared_bytes > device.shared_limit)
    throw std::runtime_error(std::to_string(shared_bytes) + " bytes of shared memory, more than " +
                             std::to_string(device.shared_limit));
}

}  // namespace

void launch(const char* name, Dim blocks, int threads, int shared_bytes, void (*body)(const void*), const void* context,
            int cluster) {
  check_limits(blocks, cluster, threads, shared_bytes);
  Launch here{name, body, context, {}, std::mt19937_64(device.seed), {}};
  launched = &here;
  Trap trap;
  const auto bytes = static_cast<size_t>(shared_bytes), whole = (bytes + 127) / 128 * 128;
  Pages stacks(static_cast<size_t>(cluster * threads) * STACK);
  std::vector<std::unique_ptr<Pages>> shared;
  for (int rank = 0; rank < cluster; ++rank) shared.push_back(std::make_unique<Pages>(whole));
  const std::vector<int64_t> turns = order_of(blocks.x / cluster * blocks.y * blocks.z);
  release_to(&here.begin);
  for (int64_t turn : turns) {
#if defined(GALA_SHIM_RACES)
    stacks.renew();
#endif
    std::vector<Position> positions;
    for (int rank = 0; rank < cluster; ++rank) {
      Pages& own = *shared[static_cast<size_t>(rank)];
#if defined(GALA_SHIM_RACES)
      own.renew();
#endif
      poison(own.begin(), static_cast<size_t>(own.end() - own.begin()));
      const int64_t b = turn * cluster + rank;
      const Dim block{b % blocks.x, b / blocks.x % blocks.y, b / blocks.x / blocks.y};
      positions.push_back({block, blocks, 0, threads, own.end() - whole, bytes, rank, cluster});
    }
    run_cluster(positions, stacks);
    for (size_t rank = 0; here.failure.empty() && rank < shared.size(); ++rank) {
      const char *begin = shared[rank]->begin(), *end = shared[rank]->end(), *own = end - whole;
      if (!poisoned(begin, static_cast<size_t>(own - begin)) ||
          !poisoned(own + bytes, static_cast<size_t>(end - own) - bytes))
        here.failure = "writes past its " + std::to_string(bytes) + " bytes of shared memory";
    }
    if (!here.failure.empty()) {
      const Dim& at = position.block;
      throw std::runtime_error(std::string(name) + ", block (" + std::to_string(at.x) + ", " + std::to_string(at.y) +
                               ", " + std::to_string(at.z) + "): " + here.failure);
    }
  }
  acquire_from(&here.end);
}

}  // namespace gala::shim

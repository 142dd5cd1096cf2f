#include <algorithm>
#include <map>
#include <tuple>

#include "running.h"
#include "shared.h"

namespace gala::shim {
namespace {

constexpr uint32_t BANKS = 32, WORD = 4;

bool counting = false;

struct Count {
  int64_t accesses = 0, conflicts = 0;
};
std::map<std::pair<std::string, std::string>, Count> counts;  // by kernel and place

// What some lanes have brought of an access that other lanes of their warp may still join: the n-th at this place.
using Place = std::tuple<const char*, uint32_t, uint32_t>;  // file, line, column
using Turn = std::tuple<int, Place, int64_t>;  // warp, place, n
struct Partial {
  uint32_t addresses[WARP] = {}, lanes = 0;
  size_t bytes = 0;
  Site site = {};
};
std::map<Turn, Partial> partials;
std::map<std::pair<int, Place>, int64_t> turns;  // of each thread

// Turns that the banks need for `count` lanes, beyond the first: all words of a bank but one wait.
int64_t conflicts_of(const uint32_t* addresses, uint32_t lanes, int count, size_t bytes) {
  std::vector<uint32_t> words[BANKS];
  for (int lane = 0; lane < count; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    const auto last = static_cast<uint32_t>(addresses[lane] + bytes - 1);
    for (uint32_t word = addresses[lane] / WORD; word <= last / WORD; ++word) {
      std::vector<uint32_t>& of_bank = words[word % BANKS];
      if (std::find(of_bank.begin(), of_bank.end(), word) == of_bank.end()) of_bank.push_back(word);
    }
  }
  size_t most = 1;
  for (const auto& of_bank : words) most = std::max(most, of_bank.size());
  return static_cast<int64_t>(most) - 1;
}

}  // namespace

void count_banks(bool on) {
  counting = on;
  counts.clear();
}

// The lanes' 4 bytes are accessed together, of 8 bytes those of half a warp, of 16 those of a quarter.
void count_access(const uint32_t* addresses, uint32_t lanes, size_t bytes, Site site) {
  if (!counting) return;
  Count& count = counts[{launched->name, text(site)}];
  ++count.accesses;
  const int together = bytes <= WORD ? WARP : WARP * static_cast<int>(WORD) / static_cast<int>(bytes);
  for (int first = 0; first < WARP; first += together)
    count.conflicts += conflicts_of(addresses + first, lanes >> first, together, bytes);
}

void count_lane(const void* shared, size_t bytes, Site site) {
  if (!counting) return;
  const int thread = own_index(), lane = thread % WARP;
  const Place place{site.file_name(), site.line(), site.column()};
  const Turn turn{thread / WARP, place, turns[{thread, place}]++};
  Partial& partial = partials[turn];
  partial.addresses[lane] = shared_address(shared);
  partial.lanes |= 1u << lane;
  partial.bytes = bytes;
  partial.site = site;
  if (partial.lanes != ~0u) return;
  count_access(partial.addresses, partial.lanes, bytes, site);
  partials.erase(turn);
}

void end_counts() {
  for (const auto& [turn, partial] : partials)
    count_access(partial.addresses, partial.lanes, partial.bytes, partial.site);
  partials.clear();
  turns.clear();
}

std::string counted_banks() {
  std::string lines;
  for (const auto& [where, count] : counts)
    lines += where.first + "\t" + where.second + "\t" + std::to_string(count.accesses) + "\t" +
             std::to_string(count.conflicts) + "\n";
  return lines;
}

}  // namespace gala::shim

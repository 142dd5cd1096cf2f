// Picks the widest instruction set that was compiled in and that this CPU has, once.

#include <cstdlib>
#include <cstring>
#include <memory>

#include "../gala.h"
#include "runtime.h"

namespace gala::cpu {

#define GALA_DECLARE(isa)                         \
  namespace isa {                                 \
  void forward(const Problem&, const Forward&);   \
  void backward(const Problem&, const Backward&); \
  }
GALA_DECLARE(baseline)
#if defined(__x86_64__)
GALA_DECLARE(avx2)
GALA_DECLARE(avx512)
#endif
#undef GALA_DECLARE

namespace {

struct Isa {
  const char* name;
  bool supported;
  void (*forward)(const Problem&, const Forward&);
  void (*backward)(const Problem&, const Backward&);
};

Isa choose() {
  const Isa all[] = {
#if defined(__x86_64__)
      {"avx512", static_cast<bool>(__builtin_cpu_supports("x86-64-v4")), avx512::forward, avx512::backward},
      {"avx2", static_cast<bool>(__builtin_cpu_supports("x86-64-v3")), avx2::forward, avx2::backward},
#endif
      {"baseline", true, baseline::forward, baseline::backward},
  };
  const char* wanted = std::getenv("GALA_CPU_ISA");
  for (const Isa& isa : all)
    if (isa.supported && wanted && std::strcmp(wanted, isa.name) == 0) return isa;
  for (const Isa& isa : all)
    if (isa.supported) return isa;
  std::abort();  // baseline is always supported
}

const Isa& chosen() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace

void* scratch(Scratch kind, size_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  struct Memory {
    std::unique_ptr<void, Free> data;
    size_t size = 0;
  };
  thread_local Memory memories[2];
  Memory& memory = memories[static_cast<int>(kind)];
  if (bytes > memory.size) {
    constexpr size_t alignment = 64;
    const size_t size = (bytes + alignment - 1) / alignment * alignment;
    memory.size = 0;
    memory.data.reset();
    memory.data.reset(std::aligned_alloc(alignment, size));
    if (!memory.data) throw std::bad_alloc();
    memory.size = size;
  }
  return memory.data.get();
}

void forward(const Problem& problem, const Forward& f) { chosen().forward(problem, f); }
void backward(const Problem& problem, const Backward& b) { chosen().backward(problem, b); }
const char* isa() { return chosen().name; }

}  // namespace gala::cpu

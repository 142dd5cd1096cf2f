// Picks the widest instruction set that was compiled in and that this CPU has, once.

#include <cstdlib>
#include <cstring>
#include <memory>

#include "../gala.h"
#include "runtime.h"

namespace gala::cpu {

#define GALA_DECLARE(isa)                                                \
  namespace isa {                                                        \
  void forward(const Problem&, const Forward&);                          \
  void backward(const Problem&, const Backward&);                        \
  void gather(const Problem&, const Forward&, const Between&);           \
  void scale(const Problem&, const Forward&, const Between&);            \
  void scale_backward(const Problem&, const Backward&, const Between&);  \
  void gather_backward(const Problem&, const Backward&, const Between&); \
  }
GALA_DECLARE(baseline)
#if defined(__x86_64__)
GALA_DECLARE(avx2)
GALA_DECLARE(avx512)
#endif
#undef GALA_DECLARE

namespace {

using ForwardStage = void (*)(const Problem&, const Forward&, const Between&);
using BackwardStage = void (*)(const Problem&, const Backward&, const Between&);

struct Isa {
  const char* name;
  bool supported;
  void (*forward)(const Problem&, const Forward&);
  void (*backward)(const Problem&, const Backward&);
  ForwardStage gather, scale;
  BackwardStage scale_backward, gather_backward;
};

#define GALA_FUNCTIONS(isa) \
  isa::forward, isa::backward, isa::gather, isa::scale, isa::scale_backward, isa::gather_backward
Isa choose() {
  const Isa all[] = {
#if defined(__x86_64__)
      {"avx512", static_cast<bool>(__builtin_cpu_supports("x86-64-v4")), GALA_FUNCTIONS(avx512)},
      {"avx2", static_cast<bool>(__builtin_cpu_supports("x86-64-v3")), GALA_FUNCTIONS(avx2)},
#endif
      {"baseline", true, GALA_FUNCTIONS(baseline)},
  };
  const char* wanted = std::getenv("GALA_CPU_ISA");
  for (const Isa& isa : all)
    if (isa.supported && wanted && std::strcmp(wanted, isa.name) == 0) return isa;
  for (const Isa& isa : all)
    if (isa.supported) return isa;
  std::abort();  // baseline is always supported
}

#undef GALA_FUNCTIONS

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
void gather(const Problem& problem, const Forward& f, const Between& between) { chosen().gather(problem, f, between); }
void scale(const Problem& problem, const Forward& f, const Between& between) { chosen().scale(problem, f, between); }
void scale_backward(const Problem& problem, const Backward& b, const Between& between) {
  chosen().scale_backward(problem, b, between);
}
void gather_backward(const Problem& problem, const Backward& b, const Between& between) {
  chosen().gather_backward(problem, b, between);
}
const char* isa() { return chosen().name; }

}  // namespace gala::cpu

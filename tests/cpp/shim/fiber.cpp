#include "fiber.h"

#include <cstdint>

#if defined(GALA_SHIM_RACES)
#include <sanitizer/tsan_interface.h>
#endif

namespace gala::shim {

Fiber::Fiber() {
#if defined(GALA_SHIM_RACES)
  sanitizer = __tsan_get_current_fiber();
#endif
}

Fiber::~Fiber() {
#if defined(GALA_SHIM_RACES)
  if (!host) __tsan_destroy_fiber(sanitizer);
#endif
}

#if defined(__x86_64__)

// The registers that a function keeps by the System V ABI are all that a switch at a call must carry over.
extern "C" void gala_shim_switch(void** leave, void* enter);
asm(R"(
  .text
  .type gala_shim_switch, @function
gala_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size gala_shim_switch, . - gala_shim_switch
)");

Fiber::Fiber(char* stack, size_t bytes, void (*entry)()) : host(false) {
  constexpr int kept = 6;
  auto* word = reinterpret_cast<uintptr_t*>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15});
  *--word = 0;  // where entry would return to; so the stack is aligned as after a call
  *--word = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < kept; ++i) *--word = 0;
  top = word;
#if defined(GALA_SHIM_RACES)
  sanitizer = __tsan_create_fiber(0);
#endif
}

void Fiber::leave_for(Fiber& other) {
#if defined(GALA_SHIM_RACES)
  __tsan_switch_to_fiber(other.sanitizer, __tsan_switch_to_fiber_no_sync);  // taking turns orders nothing
#endif
  gala_shim_switch(&top, other.top);
}

#else

Fiber::Fiber(char* stack, size_t bytes, void (*entry)()) : host(false) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
#if defined(GALA_SHIM_RACES)
  sanitizer = __tsan_create_fiber(0);
#endif
}

void Fiber::leave_for(Fiber& other) {
#if defined(GALA_SHIM_RACES)
  __tsan_switch_to_fiber(other.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&context, &other.context);
}

#endif

}  // namespace gala::shim

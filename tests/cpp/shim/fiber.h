// A thread of execution with a stack of its own, entered by leaving another.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace gala::shim {

// A default-constructed fiber stands for the thread of execution that is there already, the host.
class Fiber {
 public:
  Fiber();
  Fiber(char* stack, size_t bytes, void (*entry)());  // entry must not return, but leave for another fiber
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  void leave_for(Fiber& other);

 private:
#if defined(__x86_64__)
  void* top = nullptr;
#else
  ucontext_t context;
#endif
  void* sanitizer = nullptr;  // what ThreadSanitizer calls this fiber, in a build with it
  bool host = true;
};

}  // namespace gala::shim

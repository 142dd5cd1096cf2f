// What the instruction-set independent part offers to the stages: scratch memory.
#pragma once

#include <cstddef>

namespace gala::cpu {

// Scratch memory of the calling thread, kept for its next call, 64-byte aligned and uninitialised. `call` memory lives
// through one forward or backward; `task` memory until the thread starts its next task.
enum class Scratch { call, task };
void* scratch(Scratch kind, size_t bytes);

}  // namespace gala::cpu

// gala.h's CUDA functions as C functions, which tests/shim.py calls through ctypes with the structs of
// tests/structs.py.
#include "../../csrc/gala.h"
#include "errors.h"

using namespace gala;

extern "C" {

int64_t gala_sizes[] = {sizeof(Problem), sizeof(Forward), sizeof(Backward), sizeof(cuda::Execution)};

const char* gala_forward_workspace(const Problem* p, const Forward* f, int64_t* bytes) {
  return error_of([=] { *bytes = cuda::forward_workspace(*p, *f); });
}
const char* gala_backward_workspace(const Problem* p, const Backward* b, int64_t* bytes) {
  return error_of([=] { *bytes = cuda::backward_workspace(*p, *b); });
}

const char* gala_forward(const Problem* p, const Forward* f, const cuda::Execution* e) {
  return error_of([=] { cuda::forward(*p, *f, *e); });
}
const char* gala_backward(const Problem* p, const Backward* b, const cuda::Execution* e) {
  return error_of([=] { cuda::backward(*p, *b, *e); });
}
}

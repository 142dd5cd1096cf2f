// gala.h's forward pass in clusters as C functions, called through ctypes with the structs of tests/structs.py.
#include "../../csrc/gala.h"
#include "errors.h"

using namespace gala;

extern "C" {

const char* gala_why_not_in_cluster(const Problem* p, const Forward* f) { return cuda::why_not_in_cluster(*p, *f); }
int64_t gala_cluster_workspace(const Problem* p) { return cuda::cluster_workspace(*p); }
const char* gala_forward_in_cluster(const Problem* p, const Forward* f, const cuda::Execution* e) {
  return error_of([=] { cuda::forward_in_cluster(*p, *f, *e); });
}
}

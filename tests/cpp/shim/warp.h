// What the lanes of a warp do together: shuffles, votes, and ldmatrix and mma, with fragments laid out as in the PTX
// manual (ISA 8.5, section 9.7.14.5). Each function takes an array with one element from each lane.
#pragma once

#include <cstdint>

namespace gala::shim {

struct Shuffle {  // of one lane
  uint32_t value;
  int from;  // the lane to read; where there is no such lane, the own value comes back
  uint32_t got;
};
void shuffle(void** lanes);
void vote(void** lanes);  // each is a uint32_t, 0 or 1, that is replaced by the bits of all lanes

struct LoadMatrix {  // of one lane
  uint32_t row[4];  // the 16 bytes at the address that it gave
  uint32_t address;
  uint32_t r[4];
};
void load_matrix(void** lanes);
void load_matrix_transposed(void** lanes);

enum class Operand { bf16, f16, tf32 };

struct Mma {  // of one lane
  float d[4];
  uint32_t a[4], b[2];
};
template <Operand type>
void multiply(void** lanes);  // d += a b; [16, 16] x [16, 8], for tf32 [16, 8] x [8, 8]

float truncated(double sum);  // towards zero, as the tensor cores add

float from_bf16(uint16_t);
float from_f16(uint16_t);
uint16_t to_bf16(float);
uint16_t to_f16(float);  // both to nearest even

}  // namespace gala::shim

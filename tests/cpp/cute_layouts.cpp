// Writes tests/cpp/layouts.json: how CuTe, the layout algebra of NVIDIA's CUTLASS, lays out the operands of the
// instructions that csrc/cuda uses. tests/test_layouts.py compares the host shim with the file. To write it anew, with
// CUTLASS's headers, which the package nvidia-cutlass holds, and CUDA's:
//
//   pip install --no-deps --target /tmp/cutlass nvidia-cutlass==4.2.0.0
//   CUDA=/usr/local/cuda/include
//   c++ -std=c++17 -I/tmp/cutlass/cutlass_library/source/include -I$CUDA -I$CUDA/cccl tests/cpp/cute_layouts.cpp
//       -o /tmp/cute_layouts && /tmp/cute_layouts > tests/cpp/layouts.json
//
// Every layout maps bits to bits: the place of an index is the exclusive or of the places of its bits. The file has
// those places alone, of each bit from the lowest on; that they tell all the others is checked here.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

// A tensor's place in shared memory, for what of CuTe asks for it.
constexpr size_t SHARED_ADDRESS = 0x12400;
static size_t __cvta_generic_to_shared(const void*) { return SHARED_ADDRESS; }
#define CUTE_CVTA_GENERIC_TO_SHARED_ACTIVATED 1

#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

using namespace cute;

namespace {

const char* separator = "{\n";

// place(thread, value): of `threads` threads, or rows, that hold `values` each.
template <class Place>
void write(const char* name, int threads, int values, const Place& place) {
  const int origin = place(0, 0);
  for (int thread = 0; thread < threads; ++thread)
    for (int value = 0; value < values; ++value) {
      int sum = origin;
      for (int bit = 1; bit < threads; bit *= 2) sum ^= thread & bit ? place(bit, 0) ^ origin : 0;
      for (int bit = 1; bit < values; bit *= 2) sum ^= value & bit ? place(0, bit) ^ origin : 0;
      if (origin != 0 || sum != place(thread, value)) {
        std::fprintf(stderr, "%s does not map bits to bits\n", name);
        std::exit(1);
      }
    }
  std::printf("%s  \"%s\": [[", separator, name);
  for (int bit = 1; bit < threads; bit *= 2) std::printf("%s%d", bit > 1 ? ", " : "", place(bit, 0));
  std::printf("], [");
  for (int bit = 1; bit < values; bit *= 2) std::printf("%s%d", bit > 1 ? ", " : "", place(0, bit));
  std::printf("]]");
  separator = ",\n";
}

template <class Layout>
void write(const char* name, const Layout& layout) {
  write(name, size<0>(layout), size<1>(layout), [&](int t, int v) { return static_cast<int>(layout(t, v)); });
}

// Threads' values of the left operand [m, k], at row + m column; of the right one [n, k] and of the sums [m, n] alike.
template <class Instruction>
void write_mma(const char* left, const char* right, const char* sums) {
  using Traits = MMA_Traits<Instruction>;
  write(left, typename Traits::ALayout{});
  if (right) write(right, typename Traits::BLayout{});
  write(sums, typename Traits::CLayout{});
}

// Lanes' 16-bit values of the four matrices, counted as lanes' addresses bring them: matrix, row, column.
template <class Instruction>
void write_load(const char* name) {
  constexpr typename Copy_Traits<Instruction>::DstLayout bits{};
  write(name, 32, 8, [&](int lane, int value) { return static_cast<int>(bits(lane, 16 * value)) / 16; });
}

}  // namespace

int main() {
  write_mma<SM80_16x8x16_F32BF16BF16F32_TN>("mma 16 a", "mma 16 b", "mma 16 d");
  write_mma<SM80_16x8x8_F32TF32TF32F32_TN>("mma 8 a", "mma 8 b", "mma 8 d");
  write_load<SM75_U32x4_LDSM_N>("load_matrix");
  write_load<SM75_U16x8_LDSM_T>("load_matrix_transposed");
  write_mma<SM90_64x64x16_F32BF16BF16_RS<GMMA::Major::K, GMMA::Major::K>>("wgmma a", nullptr, "wgmma d");

  // A tile's 16-bit numbers [64, 64] in shared memory, and the descriptor of its first 16 columns. A swizzle is one of
  // addresses, so it takes a tensor to see it.
  alignas(1024) static bfloat16_t numbers[64 * 64];
  const Tensor whole =
      make_tensor(make_smem_ptr(numbers), tile_to_shape(GMMA::Layout_K_SW128_Atom<bfloat16_t>{}, Shape<_64, _64>{}));
  write("wgmma tile", 64, 64, [&](int line, int column) { return static_cast<int>(&whole(line, column) - numbers); });
  const Tensor first = local_tile(whole, Shape<_64, _16>{}, make_coord(0, 0));
  const uint64_t descriptor = SM90::GMMA::make_gmma_desc<SM90::GMMA::Major::K>(first);
  std::printf(",\n  \"wgmma descriptor\": [%zu, %llu]\n}\n", SHARED_ADDRESS,
              static_cast<unsigned long long>(descriptor));
}
